"""How requests of the read protocol are answered: small ones together, others by workers."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zstandard

from seqvault.codec import frames
from seqvault.errors import (
    DamagedFileError,
    InvalidRequestError,
    LimitError,
    ServerUnavailableError,
)
from seqvault.service import read_messages, wire
from seqvault.service.bytes_in_flight import BytesInFlight, Held
from seqvault.service.call import Call
from seqvault.service.call_log import CallLog
from seqvault.service.metrics import Metrics
from seqvault.service.read_connection import ReadConnection
from seqvault.service.read_messages import DENSE, DENSE_ZSTD, PACKED, ReadMessage
from seqvault.service.read_replies import ZSTD_LEVEL
from seqvault.service.work_pool import WorkPool
from seqvault.store import SeqVault

LOG = logging.getLogger("seqvault.server")
SMALL = 8192  # events that a read can have which is answered at once
TOGETHER = 32768  # events that reads answered together can have: about a millisecond's work
COPIES = 2  # of an answer at a time: arrays and frame


@dataclass
class Request:
    """A read under way.

    Args:
        connection: whose it is.
        number: the caller's own for it.
        message: what it asks.
        came: ``time.perf_counter`` when it was taken in.
        held: the bytes that it holds.
    """

    connection: ReadConnection
    number: int
    message: ReadMessage
    came: float
    held: Held
    call: Call = field(init=False)

    @property
    def late(self) -> bool:
        """Whether its caller waits no more."""
        wait = self.message.seconds
        return self.connection.closed or (wait > 0 and time.perf_counter() - self.came > wait)


class _Shared:
    """What answers sent from the same memory hold, until all of them are sent."""

    __slots__ = ("held", "left")

    def __init__(self, held: list[Held], left: int) -> None:
        self.held, self.left = held, left

    def sent(self) -> None:
        self.left -= 1
        if not self.left:
            for one in self.held:
                one.end()


Answer = tuple[Request, memoryview]
Send = Callable[[ReadConnection, memoryview, Callable[[], None]], None]


class ReadAnswers:
    """Answers requests.

    Small reads without filters that ask for as many events of the same fields and are there at
    the same time become one read, answered by the thread that took them in: to hand one to a
    worker would cost more than the read. All others have workers. A read that fails together
    with others is answered alone, so that each gets its own error.

    Args:
        vault: the store.
        pool: workers.
        flight: the bytes of all calls.
        metrics: is told of every call. log: of the calls.
        tell_damage: called when a file turns out to be damaged.
        send: sends a frame, and calls what it is given when it is sent or never will be.
        finished: is told, by a worker, of an answer to be sent.
    """

    def __init__(
        self,
        vault: SeqVault,
        pool: WorkPool,
        flight: BytesInFlight,
        metrics: Metrics,
        log: CallLog,
        tell_damage: Callable[[], None],
        send: Send,
        finished: Callable[[Answer], None],
    ) -> None:
        self._vault, self._pool, self._flight = vault, pool, flight
        self._metrics, self._log, self._tell_damage = metrics, log, tell_damage
        self._send, self._finished = send, finished
        self._names: dict[bytes | None, tuple[list[str] | None, int]] = {}

    def answer(self, requests: Iterable[Request]) -> None:
        """Answers requests, or has workers answer them."""
        groups: dict[tuple[int, bytes | None], list[Request]] = {}
        for request in requests:
            message = request.message
            if message.plain and 0 < message.rows * message.last_n <= SMALL:
                groups.setdefault((message.last_n, message.names), []).append(request)
            else:
                self._leave_to_worker(request)
        for (last_n, names), group in groups.items():
            for part in parts_of(group, TOGETHER // last_n):
                self._answer_together(part, last_n, names)

    def _answer_together(self, group: list[Request], last_n: int, names: bytes | None) -> None:
        try:
            held = self._flight.hold(0)
        except LimitError:
            self._leave_all(group)
            return
        try:
            fields, width = self._fields_of(names)
            messages = [request.message for request in group]
            rows = [message.rows for message in messages]
            held.make_room(COPIES * sum(rows) * (last_n * width + 16))
            data, ends = self._vault.read_framed(
                np.frombuffer(bytearray().join(m.users for m in messages), read_messages.INT64),
                _bounds_of(messages, rows),
                last_n,
                fields=fields,
                ends=np.cumsum(rows),
                numbers=[request.number for request in group],
            )
        except Exception:  # of one of them, most likely: each is told its own
            held.end()
            self._leave_all(group)
            return
        held.built(len(data))
        shared = _Shared([held, *(request.held for request in group)], len(group))
        whole, begin = data.data, 0
        seconds = time.perf_counter() - group[0].came
        for request, end in zip(group, ends.tolist(), strict=True):
            self._send(request.connection, whole[begin:end], shared.sent)
            begin = end
        self._metrics.count("Read", "OK", seconds, len(group))
        if self._log.takes():
            call = _call_of(group[0])
            call.events = _events_in(whole)
            self._log.write_taken(call, seconds)
            self._log.leave_out(len(group) - 1)
        else:
            self._log.leave_out(len(group) - 1)

    def _fields_of(self, names: bytes | None) -> tuple[list[str] | None, int]:
        """The names that a request gives, and the bytes of an event of these fields."""
        known = self._names.get(names)
        if known is None:
            fields = None if names is None else read_messages.names_of(names)
            schema = self._vault.schema
            width = sum(schema.dtype(name).itemsize for name in schema.select(fields))
            if len(self._names) >= 256:
                self._names.clear()
            known = self._names[names] = fields, width
        return known

    def _leave_all(self, group: Sequence[Request]) -> None:
        for request in group:
            self._leave_to_worker(request)

    def _leave_to_worker(self, request: Request) -> None:
        request.connection.working += 1
        try:
            self._pool.check_room()
            self._pool.submit(self._work, request)
        except Exception as error:
            self._finish(request, error, _call_of(request))

    def _work(self, request: Request) -> None:
        call = _call_of(request)
        try:
            data = self._answer_alone(request, call)
        except BaseException as error:
            self._finish(request, error, call)
            return
        self._finish(request, data, call)

    def _answer_alone(self, request: Request, call: Call) -> memoryview:
        if request.late:
            raise ServerUnavailableError("the deadline passed before the call.")
        message = request.message
        if message.encoding not in (DENSE, DENSE_ZSTD, PACKED):
            raise InvalidRequestError(
                f"encoding {message.encoding} is not offered; ask for 0, 1 or 2."
            )
        arguments: dict[str, Any] = message.arguments()
        packed = message.encoding == PACKED
        most = self._vault.answer_bytes(**arguments, packed=packed)
        if most > wire.MAX_MESSAGE:
            raise LimitError(
                f"the answer can take {most} bytes, a message {wire.MAX_MESSAGE}; ask for fewer "
                "users, events or fields at a time."
            )
        request.held.make_room(COPIES * most)
        if packed:
            body = self._vault.read_packed(**arguments)
            data = memoryview(
                frames.frame(
                    frames.ANSWER, request.number, *read_messages.other_answer(PACKED, body)
                )
            )
        else:
            made, ends = self._vault.read_framed(**arguments, numbers=[request.number])
            data = made.data[: int(ends[0])]
            call.events = _events_in(data)
            if message.encoding == DENSE_ZSTD:
                body = zstandard.ZstdCompressor(ZSTD_LEVEL).compress(data[frames.HEADER :])
                parts = read_messages.other_answer(DENSE_ZSTD, body)
                data = memoryview(frames.frame(frames.ANSWER, request.number, *parts))
        request.held.built(len(data))
        return data

    def _finish(self, request: Request, outcome: memoryview | BaseException, call: Call) -> None:
        """Counts and logs a call, and hands its answer, or its error, on to be sent."""
        if isinstance(outcome, BaseException):
            data = self.error_frame(outcome, request.number, call)
        else:
            data = outcome
        seconds = time.perf_counter() - request.came
        self._metrics.observe(call, seconds)
        self._log.write(call, seconds)
        self._finished((request, data))

    def error_frame(self, error: BaseException, number: int, call: Call) -> memoryview:
        """The frame that tells an error; the call is told of it, too."""
        failed = error if isinstance(error, Exception) else RuntimeError(repr(error))
        code = wire.code_of(failed)
        call.outcome, call.error = code.name, f"{type(error).__name__}: {error}"
        if isinstance(error, ServerUnavailableError):
            call.outcome = "DEADLINE_EXCEEDED"
        if isinstance(error, DamagedFileError):
            self._tell_damage()
        if call.outcome in ("UNKNOWN", "DATA_LOSS"):
            told = {"event": "call failed", "request_id": call.request_id}
            LOG.error(json.dumps(told), exc_info=error)
        return memoryview(frames.frame(frames.ERROR, number, *read_messages.error_parts(failed)))


def parts_of(group: list[Request], most: int) -> Iterable[list[Request]]:
    """The requests in parts of at most so many users, each request whole.

    Args:
        group: none asks for more users than ``most``.
        most: users.
    """
    part: list[Request] = []
    rows = 0
    for request in group:
        rows += request.message.rows
        if part and rows > most:
            yield part
            part, rows = [], request.message.rows
        part.append(request)
    if part:
        yield part


def _bounds_of(messages: Sequence[ReadMessage], rows: Sequence[int]) -> np.ndarray:
    """int64 bounds on time: of each user, or one for all."""
    if len(messages) == 1 and rows[0] == 1:
        return np.frombuffer(messages[0].before, read_messages.INT64)
    parts = (m.before * n if m.one_bound else m.before for m, n in zip(messages, rows, strict=True))
    return np.frombuffer(b"".join(parts), read_messages.INT64)


def _call_of(request: Request) -> Call:
    connection = request.connection
    call = Call("Read", f"{connection.peer}/{request.number}", connection.peer)
    call.users = request.message.rows
    return call


def _events_in(data: memoryview) -> int:
    """Events of the answer whose frame starts there."""
    at = frames.HEADER + 8
    return int.from_bytes(data[at : at + 8], "little")
