"""Moves appended events from the log into segments while the gateway runs."""

from __future__ import annotations

import logging
import threading

from seqvault import SeqVault
from seqvault.errors import SeqVaultError

log = logging.getLogger(__name__)


class Merger:
    """Merges an embedded store now and then: only its one writer can, and that is the gateway.

    A SeqVault server does this by itself. Reads and appends go on during a merge.

    Args:
        store: The store that the gateway opened for writing.
        seconds: Time between two merges; nothing is done while no event waits.
    """

    def __init__(self, store: SeqVault, seconds: float = 60.0) -> None:
        self._store = store
        self._seconds = seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="merger", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let a merge under way finish, and start no other."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            if not self._store.stats()["events_in_log"]:
                continue
            try:
                self._store.merge()
            except SeqVaultError as error:
                log.error("The store was not merged, its log keeps growing: %s", error)
