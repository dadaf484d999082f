"""Merges the log into segments in a background thread."""

import json
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from seqvault.errors import DiskFullError, ForkedStoreError, StoreClosedError

LOG = logging.getLogger("seqvault.merge")
MERGE_AT = 1 << 18  # new events in the log
BYTES_PER_SECOND = 64 << 20  # that a merge writes, so that it leaves the disk to reads
JITTER = 0.25  # of the time between merges: servers started together do not merge together
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds after a failed merge; doubled each time
FULL_PAUSE = 5.0  # the longest for a full disk: with room back merging goes on within seconds
UNHEALTHY_SECONDS = 60.0  # of failing


class Mergeable(Protocol):
    """The methods of ``SeqVault`` that the thread uses."""

    @property
    def events_in_log(self) -> int:
        """See ``SeqVault.events_in_log``."""

    def merge(self, hold_small: bool, bytes_per_second: float | None) -> dict[str, int]:
        """See ``SeqVault.merge``."""


class BackgroundMerge:
    """A thread that merges periodically, and as soon as the log has ``MERGE_AT`` new events.

    The first merge comes after a random part of that time: where many servers start at
    once, with full logs, they would all merge at the same moment.

    The thread survives any exception of a merge: it counts the failure, logs it (a repeated one
    once) and retries with exponential backoff. It ends with ``stop``,
    or when the store is closed.

    Args:
        vault: a store open for writing.
        seconds: the longest time between merges while there are events; 0: never merges.
        first_pause: seconds after the first failure in a row.
        unhealthy_seconds: of failing, after which ``healthy`` is False.
        tell_health: called with ``healthy`` whenever it changes.

    Attributes:
        failures: merges that failed, in all.
    """

    def __init__(
        self,
        vault: Mergeable,
        seconds: float,
        first_pause: float = FIRST_PAUSE,
        unhealthy_seconds: float = UNHEALTHY_SECONDS,
        tell_health: Callable[[bool], None] = lambda healthy: None,
    ) -> None:
        self._vault, self._seconds = vault, seconds
        self._first_pause, self._unhealthy_seconds = first_pause, unhealthy_seconds
        self._tell_health, self._told = tell_health, True
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="seqvault-merge", daemon=True)
        self.failures = 0
        self._in_a_row, self._logged = 0, ""
        self._failing_since: float | None = None
        self._held = 0  # events that the last merge left in the log
        if seconds > 0:
            self._thread.start()

    @property
    def failing_seconds(self) -> float:
        """Seconds since merges began to fail; 0 if the last one succeeded."""
        since = self._failing_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def healthy(self) -> bool:
        """Whether merges go well, or have not failed for long."""
        return self.failing_seconds < self._unhealthy_seconds

    def stop(self) -> None:
        """Stops the thread and waits for a merge in progress; closing the store first aborts it."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        due = time.monotonic() + random.random() * self._seconds
        ready = due  # a full log has to wait for its turn, too
        while not self._stopping.wait(min(self._seconds, 1.0, self._first_pause)):
            now = time.monotonic()
            try:
                new = self._vault.events_in_log - self._held
                if (new >= MERGE_AT and now >= ready) or (new > 0 and now >= due):
                    due = now + self._seconds * (1 + random.uniform(-JITTER, JITTER))
                    ready = now
                    self._merge()
            except (StoreClosedError, ForkedStoreError):
                return
            except Exception as error:
                due = ready = time.monotonic() + self._failed(error)
            self._tell()

    def _merge(self) -> None:
        done = self._vault.merge(hold_small=True, bytes_per_second=BYTES_PER_SECOND)
        self._held = self._vault.events_in_log
        self._in_a_row, self._logged, self._failing_since = 0, "", None
        LOG.info(json.dumps({"event": "merged", **done}))

    def _failed(self, error: Exception) -> float:
        """Counts and logs a failure; returns how many seconds to wait."""
        self.failures += 1
        self._in_a_row += 1
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        what = f"{type(error).__name__}: {error}"
        if what != self._logged:
            self._logged = what
            LOG.error(json.dumps({"event": "merge failed", "error": what}), exc_info=error)
        longest = FULL_PAUSE if isinstance(error, DiskFullError) else LONGEST_PAUSE
        pause = min(self._first_pause * 2 ** min(self._in_a_row - 1, 20), longest)
        return pause * (1 + random.uniform(-JITTER, JITTER))

    def _tell(self) -> None:
        if self.healthy != self._told:
            self._told = self.healthy
            self._tell_health(self._told)
