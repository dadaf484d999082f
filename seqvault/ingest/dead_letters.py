"""The dead-letter file: messages that cannot be stored, with the reason."""

import base64
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from seqvault.errors import InvalidRequestError

KEPT_PER_MINUTE = 1000  # whole messages; of more, only the place and the reason


class DeadLetters:
    """A file with a JSON line for every malformed message, each once.

    A line has ``topic``, ``partition``, ``offset``, ``reason``, ``time`` (ms) and, in base64,
    ``key`` and ``value``. At most ``KEPT_PER_MINUTE`` messages a minute keep their content, so that
    a faulty producer cannot fill the disk; a line without ``value`` has
    ``"omitted": true``, and the message is still in the log at that place.

    Args:
        path: the file, appended to if it exists. A last line torn by a crash is cut off.
        clock: seconds since 1970, for tests.

    Raises:
        InvalidRequestError: another ingest has the file, or it is something else.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.count = 0
        self._clock, self._minute, self._kept = clock, -1, 0
        self._last: dict[tuple[str, int], int] = {}
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.truncate(self._take_in(path))
        except BlockingIOError:
            self._file.close()
            raise InvalidRequestError(
                f"{path} is in use by another ingest; give each its own file of dead letters."
            ) from None
        except BaseException:
            self._file.close()
            raise

    def _take_in(self, path: Path) -> int:
        """Scans the lines of earlier runs; returns the end of the last whole line."""
        end = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(line)
                    place = entry["topic"], entry["partition"]
                    self._last[place] = max(self._last.get(place, -1), entry["offset"])
                except (ValueError, KeyError, TypeError):
                    raise InvalidRequestError(
                        f"{path} is not a dead-letter file, or was modified; name another."
                    ) from None
                end += len(line)
        return end

    def last_offset(self, topic: str, partition: int) -> int:
        """Highest offset that has a line; -1: none."""
        return self._last.get((topic, partition), -1)

    def add(
        self, topic: str, partition: int, offset: int, reason: str,
        key: bytes | None, value: bytes | None,
    ) -> bool:  # fmt: skip
        """Writes a line, unless a run before a restart did; ``sync`` makes it durable."""
        if offset <= self.last_offset(topic, partition):
            return False
        now = self._clock()
        entry = {
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "reason": reason,
            "time": int(now * 1000),
        }
        if self._may_keep(now):
            entry |= {"key": _text(key), "value": _text(value)}
        else:
            entry["omitted"] = True
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._last[topic, partition] = offset
        self.count += 1
        return True

    def _may_keep(self, now: float) -> bool:
        if int(now // 60) != self._minute:
            self._minute, self._kept = int(now // 60), 0
        self._kept += 1
        return self._kept <= KEPT_PER_MINUTE

    def sync(self) -> None:
        """Returns when all lines are on the disk."""
        self._file.flush()
        os.fdatasync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _text(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()
