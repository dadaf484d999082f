"""The trainer's side of feature hosts: which there are, what they have, streams of theirs."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from laser_features import FeatureSpec
from tfx_pipeline.cluster.exit_codes import EXIT_NO_FEATURE_HOST, EXIT_OTHER_SCHEMA
from tfx_pipeline.errors import ClusterError
from tfx_pipeline.feature_host.address import parse_address
from tfx_pipeline.feature_host.silent_streams import SILENT_SECONDS
from tfx_pipeline.feature_host.stream_order import StreamOrder
from tfx_pipeline.feature_host.wire_layout import wire_fingerprint

WAIT_SECONDS = 300.0
"""How long a training waits for the first feature host to answer, at its start and later."""
_CALL_SECONDS = 30.0
_BETWEEN_SECONDS = 0.5
_HANGS_SECONDS = 300.0
"""How long a host that took a call and did not answer is asked only if no other answers."""
_SHARD = "feature-host://"
_DESCRIBED = {"schema", "spec", "data", "negative_rate", "splits"}


@dataclass(frozen=True)
class OpenStream:
    """A stream that a host has opened.

    Attributes:
        host: Address of the host's control, "host:port".
        endpoint: Where the batches are read, "IPv4:port".
        number: What each of its batches is sealed with.
        first: Number of its first batch.
        batches: Batches of the whole shard.
    """

    host: str
    endpoint: str
    number: int
    first: int
    batches: int

    @property
    def port(self) -> int:
        """Of the endpoint."""
        return int(self.endpoint.rpartition(":")[2])


class FeatureHosts:
    """Asks feature hosts that all have the same requests; those that do not answer are passed over.

    Args:
        addresses: "host:port" of each host's control.
        spec: The trainer's feature spec.
        negative_rate: Share of negatives that the trainer corrects its predictions for.
        say: Takes a line when hosts have to be waited for.
        seconds: How long to wait for one that answers.
        silent_seconds: How long a stream may bring nothing, and at most a call no answer.

    Raises:
        ClusterError: No host answers, or one has another schema or other data.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        spec: FeatureSpec,
        negative_rate: float = 1.0,
        say: Callable[[str], None] = print,
        seconds: float = WAIT_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self._addresses, self._schema, self._spec = list(addresses), wire_fingerprint(spec), spec
        self._negative_rate, self._say, self._seconds = negative_rate, say, seconds
        self.silent_seconds = silent_seconds
        self._next = 0
        self._silent_until: dict[str, float] = {}
        self._data = ""
        described = self._ask_any(lambda address: self._describe(address))
        self._data = str(described["data"])
        self._splits: dict[str, list[int]] = described["splits"]
        for address in self._addresses:  # so that another log shows before any step is taken
            self._answers(address)

    @property
    def addresses(self) -> list[str]:
        """Of each host's control."""
        return list(self._addresses)

    @property
    def data(self) -> str:
        """Fingerprint of the requests, and of the order in which they come."""
        return self._data

    def shards(self, split: str) -> list[str]:
        """Names of a split's shards, in order; ``open`` takes them.

        Raises:
            ClusterError: The hosts have no such split.
        """
        if split not in self._splits:
            raise ClusterError(
                f"the feature hosts have the splits {sorted(self._splits)} and not {split!r}: "
                "start them with the config that the training has",
                EXIT_OTHER_SCHEMA,
            )
        return [f"{_SHARD}{self._data[:16]}/{split}/{each:05d}" for each in self._splits[split]]

    def open(self, shard: str, order: dict[str, Any], first: int = 0) -> OpenStream:
        """Have a host open a stream; another one than the last time, if there is one.

        Args:
            shard: One of ``shards``.
            order: The further parts of a ``StreamOrder``.
            first: Batches to leave out.

        Raises:
            ClusterError: No host answers, or one has another schema or other data.
        """
        split, number = shard.removeprefix(_SHARD).split("/")[1:]
        wanted = StreamOrder(split=split, shard=int(number), **order)
        return self._ask_any(lambda address: self._open(address, replace(wanted, first=first)))

    def is_open(self, stream: OpenStream) -> bool:
        """Whether its host still has it."""
        try:
            return self._ask_of(stream, "GET") == 200
        except OSError:
            return False

    def close(self, stream: OpenStream) -> None:
        """Tell a host, if it is still there, that a stream is not needed any more."""
        try:
            self._ask_of(stream, "DELETE")
        except OSError:
            return

    def _ask_of(self, stream: OpenStream, method: str) -> int:
        """Status of a call about a stream; one that hangs is not asked again so soon.

        Raises:
            OSError: The host does not answer.
        """
        if self._hangs(stream.host):
            raise OSError(f"{stream.host} did not answer before")
        return self._call(stream.host, method, f"/streams/{stream.port}")[0]

    def _call(self, address: str, method: str, path: str, content: Any = None) -> tuple[int, Any]:
        try:
            return _call(address, method, path, content, min(_CALL_SECONDS, self.silent_seconds))
        except TimeoutError:
            self._silent_until[address] = time.monotonic() + _HANGS_SECONDS
            raise

    def _hangs(self, address: str) -> bool:
        """Whether it took a call and did not answer, a while ago."""
        return self._silent_until.get(address, 0.0) > time.monotonic()

    def _open(self, address: str, order: StreamOrder) -> OpenStream:
        self._describe(address)
        status, answer = self._call(address, "POST", "/streams", asdict(order))
        reason = answer.get("error", f"status {status}")
        if status == 503:
            raise OSError(reason)
        if status != 200:
            raise ClusterError(
                f"feature host {address} opens no stream: {reason}", EXIT_OTHER_SCHEMA
            )
        host, _ = parse_address(address)
        own = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        endpoint = f"{own}:{answer['port']}"
        return OpenStream(address, endpoint, answer["stream"], order.first, answer["batches"])

    def _describe(self, address: str) -> dict[str, Any]:
        status, answer = self._call(address, "GET", "/")
        if status != 200 or not set(answer) >= _DESCRIBED:
            raise ClusterError(
                f"what answers at {address} is no feature host: correct the address",
                EXIT_OTHER_SCHEMA,
            )
        if answer["schema"] != self._schema:
            raise ClusterError(
                f"feature host {address} sends batches of feature spec {answer['spec']!r} "
                f"({answer['schema'][:12]}), and the training has {self._spec.name!r} "
                f"({self._schema[:12]}): start both with the same features.yaml and version",
                EXIT_OTHER_SCHEMA,
            )
        if answer["negative_rate"] != self._negative_rate:
            raise ClusterError(
                f"feature host {address} keeps {answer['negative_rate']} of the negatives, and the "
                f"training corrects for {self._negative_rate}: give both the same negative_rate",
                EXIT_OTHER_SCHEMA,
            )
        if self._data and answer["data"] != self._data:
            raise ClusterError(
                f"feature host {address} has other requests than the training began with: start "
                "all hosts with the same dataset, config and version",
                EXIT_OTHER_SCHEMA,
            )
        return answer

    def _answers(self, address: str) -> bool:
        try:
            self._describe(address)
        except OSError:
            self._say(f"feature host {address} does not answer: going on without it")
            return False
        return True

    def _ask_any(self, ask: Callable[[str], Any]) -> Any:
        """The first answer, of the host after the one asked last on."""
        end = time.monotonic() + self._seconds
        has_said = False
        while True:
            for address in self._in_turn():
                self._next += 1
                try:
                    return ask(address)
                except OSError as error:
                    reason = f"{address}: {error}"
            if time.monotonic() > end:
                raise ClusterError(
                    f"no feature host answered for {self._seconds:.0f} s ({reason}): start "
                    "`laser-pipeline feature-host`, then the same command again",
                    EXIT_NO_FEATURE_HOST,
                )
            if not has_said:
                self._say(f"waiting for a feature host ({reason})")
                has_said = True
            time.sleep(_BETWEEN_SECONDS)

    def _in_turn(self) -> list[str]:
        """All hosts, from the one after the one asked last; those that hang come at the end."""
        first = self._next % len(self._addresses)
        turn = [*self._addresses[first:], *self._addresses[:first]]
        return sorted(turn, key=self._hangs)


def is_shard(name: str) -> bool:
    """Whether a name is one of ``FeatureHosts.shards`` and not a file's."""
    return name.startswith(_SHARD)


def _call(address: str, method: str, path: str, content: Any, seconds: float) -> tuple[int, Any]:
    """Status and parsed answer.

    Raises:
        OSError: The host does not answer.
        ClusterError: It answers something else than JSON.
    """
    host, port = parse_address(address)
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    try:
        body = None if content is None else json.dumps(content)
        connection.request(method, path, body)
        answer = connection.getresponse()
        parsed = json.loads(answer.read())
        return answer.status, parsed if isinstance(parsed, dict) else {}
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ClusterError(
            f"what answers at {address} is no feature host: correct the address", EXIT_OTHER_SCHEMA
        ) from error
    finally:
        connection.close()
