"""Logs what was shown, as JSON lines, beside the requests and never in their way."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import orjson
from numpy.typing import NDArray

from laser_features import RequestBatch
from serving.runtime.steady_thread import SteadyThread

log = logging.getLogger(__name__)
_PAUSE_SECONDS = 0.2
_REST_SECONDS = 5.0
"""After a failure: each further try on a full disk may leave one more file with a cut-off line."""
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class Shown:
    """What one rank request was answered.

    Attributes:
        user_id: Of the request.
        time_ms: Of the request; its history ends before it.
        model_version: The version that scored.
        fields: Context and user fields of the request, as far as it sent any.
        item_ids: int64 [K], best first.
        scores: float [K].
        candidate_fields: [K] each.
    """

    user_id: int
    time_ms: int
    model_version: int
    fields: Mapping[str, Any]
    item_ids: NDArray
    scores: NDArray
    candidate_fields: Mapping[str, NDArray]

    @classmethod
    def of(cls, batch: RequestBatch, order: NDArray, scores: NDArray, version: int) -> Shown:
        """The candidates at ``order`` of a batch of one request; ``scores`` are of all."""
        return cls(
            user_id=int(batch.user_id[0]),
            time_ms=int(batch.time_ms[0]),
            model_version=version,
            fields={name: values[0].item() for name, values in batch.fields.items()},
            item_ids=batch.candidate_item_id[0][order],
            scores=scores[order],
            candidate_fields={
                name: values[0][order] for name, values in batch.candidate_fields.items()
            },
        )

    def line(self, request_id: int) -> bytes:
        """One line of the log."""
        content = {
            "request_id": request_id,
            "user_id": self.user_id,
            "time_ms": self.time_ms,
            "model_version": self.model_version,
            "fields": self.fields,
            "item_id": self.item_ids.tolist(),
            "score": self.scores.tolist(),
            "candidate": {name: each.tolist() for name, each in self.candidate_fields.items()},
        }
        return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)


class ImpressionLog:
    """A folder of files to which a thread of its own appends.

    ``add`` never waits: while more impressions wait than may, further ones are dropped and
    counted. A line that a full disk cuts off is the last of its file; what is shown later goes
    into a new one, once there is room.

    Args:
        folder: Where files ``impressions-*.jsonl`` are written; made if it is not there. Several
            gateways may share it.
        most_waiting: Impressions that may wait to be written.
        file_bytes: A file this large is followed by a new one.
        file_seconds: Likewise one this old.

    Raises:
        OSError: The folder cannot be written to.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> folder = Path(tempfile.mkdtemp())
        >>> log = ImpressionLog(folder)
        >>> log.start()
        >>> log.add(Shown(7, 1_700_000_000_000, 3, {}, np.array([5]), np.array([0.5]), {}))
        >>> log.close()
        >>> [path.read_text().count('"user_id":7') for path in folder.iterdir()], log.dropped
        ([1], 0)
    """

    def __init__(
        self,
        folder: Path,
        most_waiting: int = 200_000,
        file_bytes: int = 2**26,
        file_seconds: float = 3600.0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._most_waiting = folder, most_waiting
        self._file_bytes, self._file_seconds = file_bytes, file_seconds
        self._waiting: deque[Shown] = deque()
        self._impressions_waiting = 0
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._end_of_file = self._rests_until = 0.0
        self.logged = 0
        self.dropped = 0
        self._open_file()  # a folder that cannot be written to shows at the start
        self._thread = SteadyThread("impression log", self._write, _PAUSE_SECONDS)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def add(self, shown: Shown) -> None:
        """Have it written soon, or count it as dropped; from any thread."""
        with self._lock:
            if self._impressions_waiting + len(shown.item_ids) > self._most_waiting:
                self.dropped += len(shown.item_ids)
                return
            self._impressions_waiting += len(shown.item_ids)
            self._waiting.append(shown)

    def close(self) -> None:
        """Write what waits, and stop; a disk that does not answer is not waited for."""
        self._thread.stop(_CLOSE_SECONDS)
        if self._thread.running:
            return
        try:
            self._write_all()
        except OSError as error:
            log.error("impressions could not be logged: %s", error)
        with self._lock:
            self.dropped += self._impressions_waiting
            self._impressions_waiting = 0
            self._waiting.clear()
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        if time.monotonic() < self._rests_until:
            return
        try:
            self._write_all()
        except BaseException:
            self._rests_until = time.monotonic() + _REST_SECONDS
            raise

    def _write_all(self) -> None:
        while self._waiting:
            if self._file is None or time.monotonic() > self._end_of_file:
                self._open_file()
            taken = self._take()
            count = sum(len(each.item_ids) for each in taken)
            assert self._file is not None
            try:
                self._file.write(b"".join(each.line(secrets.randbits(63)) for each in taken))
                self._file.flush()
                if self._file.tell() >= self._file_bytes:
                    self._end_of_file = 0.0
            except BaseException:
                self._drop_file()
                with self._lock:
                    self.dropped += count
                raise
            self.logged += count

    def _take(self) -> list[Shown]:
        """Some of what waits: few enough that files end near their size."""
        taken: list[Shown] = []
        with self._lock:
            while self._waiting and len(taken) < 1000:
                taken.append(self._waiting.popleft())
                self._impressions_waiting -= len(taken[-1].item_ids)
        return taken

    def _open_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
        path = self._folder / f"impressions-{now}-{secrets.token_hex(4)}.jsonl"
        self._file = path.open("xb")
        self._end_of_file = time.monotonic() + self._file_seconds

    def _drop_file(self) -> None:
        """Leave a file whose last line may be cut off."""
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError:
            return  # it could not write the rest, which was counted as dropped
