"""Moves the log into segments while a process writes."""

import json
import logging
import random
import threading
import time
from typing import TYPE_CHECKING

from seqvault.errors import SeqVaultError

if TYPE_CHECKING:
    from seqvault.store import SeqVault

LOG = logging.getLogger("seqvault.merge")
MERGE_AT = 1 << 18  # new events in the log
BYTES_PER_SECOND = 64 << 20  # that a merge writes, so that it leaves the disk to reads
JITTER = 0.25  # of the time between merges: servers started together do not merge together


class BackgroundMerge:
    """A thread that merges when the log has ``MERGE_AT`` new events, and about so often.

    The first merge comes after a random part of that time: where many servers start at
    once, with full logs, they would all merge at the same moment.

    Args:
        vault: a store open for writing.
        seconds: the longest time between merges while there are events; 0: never merges.
    """

    def __init__(self, vault: "SeqVault", seconds: float) -> None:
        self._vault, self._seconds = vault, seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="seqvault-merge", daemon=True)
        self.failures = 0
        if seconds > 0 and not vault.read_only:
            self._thread.start()

    def _run(self) -> None:
        due = time.monotonic() + random.random() * self._seconds
        ready = due  # a full log has to wait for its turn, too
        held = 0  # events that the last merge left in the log
        while not self._stopping.wait(min(self._seconds, 1.0)):
            new, now = self._vault.events_in_log - held, time.monotonic()
            if (new >= MERGE_AT and now >= ready) or (new > 0 and now >= due):
                due = now + self._seconds * (1 + random.uniform(-JITTER, JITTER))
                ready = now
                try:
                    done = self._vault.merge(hold_small=True, bytes_per_second=BYTES_PER_SECOND)
                    held = self._vault.events_in_log
                    LOG.info(json.dumps({"event": "merged", **done}))
                except SeqVaultError as error:
                    self.failures += 1
                    LOG.error(json.dumps({"event": "merge failed", "error": str(error)}))

    def stop(self) -> None:
        """Lets a merge under way end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
