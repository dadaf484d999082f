"""A parameter-server cluster on TensorFlow's own TF_CONFIG.

Servers and workers run ``python -m tfx_pipeline.training.cluster``; the chief runs the trainer. A
chief that loses a server ends with ``EXIT_SERVER_LOST``: whoever supervises it restarts the
servers and the chief, which goes on from the last checkpoint. A worker that is lost and comes
back gets its file again: up to one file's steps are then taken twice. With several workers, steps
overlap in time and results depend on their order.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfx_pipeline.errors import ClusterError, ServerLostError
from tfx_pipeline.feature_host.silent_streams import watch_as_worker
from tfx_pipeline.training.feature_streams import load_reader
from tfx_pipeline.training.row_frames import load_if_built

EXIT_SERVER_LOST = 75
"""Exit code of a chief that lost a parameter server (EX_TEMPFAIL: trying again may help)."""
CHIEF = "chief"
_connected = False


@dataclass(frozen=True)
class Cluster:
    """A cluster's addresses and this process's task in it.

    Attributes:
        addresses: "host:port" of every task, by job: ``chief``, ``ps``, ``worker``.
        job: This process's job.
        index: This process's index within its job.
    """

    addresses: Mapping[str, list[str]]
    job: str
    index: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Cluster | None:
        """The cluster that TF_CONFIG describes; None if it is unset or has no parameter servers.

        Raises:
            ClusterError: TF_CONFIG is not what it should be.

        Example:
            >>> Cluster.from_environment({}) is None
            True
        """
        text = environment.get("TF_CONFIG", "")
        if not text:
            return None
        try:
            config = json.loads(text)
            addresses = {job: list(hosts) for job, hosts in config.get("cluster", {}).items()}
            task = config.get("task", {})
            job, index = str(task.get("type", "chief")), int(task.get("index", 0))
        except (ValueError, TypeError, AttributeError) as error:
            raise ClusterError(
                f"TF_CONFIG is {text!r}; expected JSON with 'cluster' and 'task' ({error})"
            ) from error
        if not addresses.get("ps"):
            return None
        for name, hosts in addresses.items():
            if isinstance(config["cluster"][name], str) or not all(map(_is_address, hosts)):
                raise ClusterError(
                    f"TF_CONFIG's {name} is {config['cluster'][name]!r}; expected a list of "
                    '"host:port"'
                )
        if not addresses.get("worker"):
            raise ClusterError(f"TF_CONFIG names parameter servers but no worker: {text}")
        # Nobody looks the chief up: it may be absent from the addresses.
        known = {CHIEF: 1, **{name: len(hosts) for name, hosts in addresses.items()}}
        if not 0 <= index < known.get(job, 0):
            raise ClusterError(f"TF_CONFIG's task {job}:{index} is not in its cluster {addresses}")
        return cls(addresses, job, index)

    @property
    def parameter_servers(self) -> int:
        """Number of parameter servers."""
        return len(self.addresses["ps"])

    def connect(self) -> tf.distribute.ParameterServerStrategy:
        """Connect the chief to all tasks; waits until they answer.

        Raises:
            ClusterError: This task is not the chief.
        """
        global _connected
        self.check_chief()
        addresses = dict(self.addresses)
        # Servers learn it when the chief connects.
        addresses.setdefault(CHIEF, [_own_address(self.addresses["ps"][0])])
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(addresses),
            task_type=CHIEF,
            task_id=0,
            rpc_layer="grpc",
        )
        _connected = True
        return tf.distribute.ParameterServerStrategy(
            resolver, variable_partitioner=weight_partitioner(self.parameter_servers)
        )

    def check_chief(self) -> None:
        """Raise unless this task is the one that runs the trainer.

        Raises:
            ClusterError: It is another one.
        """
        if self.job != CHIEF:
            raise ClusterError(
                f"this task is {self.job}:{self.index}; only the chief runs the trainer, others "
                "run `python -m tfx_pipeline.training.cluster`"
            )

    def serve(self) -> None:
        """Run this task's server until the process is ended."""
        if self.job == "worker":
            load_reader()
            watch_as_worker()
        server = tf.distribute.Server(
            tf.train.ClusterSpec({job: hosts for job, hosts in self.addresses.items()}),
            job_name=self.job,
            task_index=self.index,
            protocol="grpc",
            start=True,
        )
        print(
            f"{self.job}:{self.index} serves at {self.addresses[self.job][self.index]}", flush=True
        )
        server.join()


def is_chief() -> bool:
    """Whether this process has connected to the tasks of a cluster."""
    return _connected


def weight_partitioner(servers: int) -> Any:
    """Split float32 variables by rows over all servers, and nothing else.

    Weights and their optimiser slots are float32, counters are not. With one shard per server in
    the order of creation, a slot's shard lies where its weight's shard does.
    """

    def partition(shape: tf.TensorShape, dtype: tf.DType, **_: Any) -> list[int]:
        if dtype != tf.float32:
            return [1] * shape.rank
        if shape[0] < servers:
            raise ValueError(
                f"a table of {shape[0]} rows cannot be split over {servers} parameter servers; use "
                "fewer servers or more rows"
            )
        return [servers] + [1] * (shape.rank - 1)

    return partition


def _is_address(text: object) -> bool:
    host, _, port = str(text).rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 65536


def _own_address(peer: str) -> str:
    """ "host:port" of this machine, on the network by which it reaches a peer; the port is free."""
    host = peer.rpartition(":")[0].strip("[]")
    family = socket.getaddrinfo(host, 0)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: it only asks for the way
        own = probe.getsockname()[0]
    with socket.socket(family) as probe:
        probe.bind((own, 0))
        port = probe.getsockname()[1]
    return f"[{own}]:{port}" if ":" in own else f"{own}:{port}"


@contextmanager
def server_loss_named() -> Iterator[None]:
    """Raise ``ServerLostError`` where a parameter server does not answer any more.

    Raises:
        ServerLostError: One line in place of TensorFlow's, which list every operation.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        reason = error.message.splitlines()[0]
        raise ServerLostError(
            f"a parameter server was lost ({reason[:200]}): start the servers again, then the same "
            "command, which goes on from the last checkpoint"
        ) from error


@contextmanager
def exit_when_server_lost() -> Iterator[None]:
    """End the process with ``EXIT_SERVER_LOST`` when a parameter server does not answer."""
    try:
        with server_loss_named():
            yield
    except ServerLostError as error:
        print(error, file=sys.stderr)
        sys.stderr.flush()
        # The coordinator's threads still wait for the lost server; a plain exit would wait too.
        os._exit(EXIT_SERVER_LOST)


def main() -> None:
    """Serve the task that TF_CONFIG names."""
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")  # as ``laser-pipeline`` does
    cluster = Cluster.from_environment()
    if cluster is None or cluster.job not in ("ps", "worker"):
        raise SystemExit("set TF_CONFIG to a cluster and to a task of type 'ps' or 'worker'")
    load_if_built()
    cluster.serve()


if __name__ == "__main__":
    main()
