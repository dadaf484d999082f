"""Moves the log into segments while a process writes."""

import json
import logging
import threading
import time
from typing import TYPE_CHECKING

from seqvault.errors import SeqVaultError

if TYPE_CHECKING:
    from seqvault.store import SeqVault

LOG = logging.getLogger("seqvault.merge")
MERGE_AT = 1 << 18  # events in the log


class BackgroundMerge:
    """A thread that merges when the log has ``MERGE_AT`` events, and at least so often.

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
        last = time.monotonic()
        while not self._stopping.wait(min(self._seconds, 1.0)):
            waiting = self._vault.events_in_log
            due = time.monotonic() - last >= self._seconds
            if waiting >= MERGE_AT or (waiting and due):
                last = time.monotonic()
                try:
                    done = self._vault.merge()
                    LOG.info(json.dumps({"event": "merged", **done}))
                except SeqVaultError as error:
                    self.failures += 1
                    LOG.error(json.dumps({"event": "merge failed", "error": str(error)}))

    def stop(self) -> None:
        """Lets a merge under way end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
