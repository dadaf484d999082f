"""What the comparison asks of a store."""

from abc import ABC, abstractmethod

import numpy as np

from benchmarks.seqvault.timing import drop_page_cache
from benchmarks.seqvault.workload import Blobs, Columns, Histories


class Peer(ABC):
    """One store in one setting, open and empty.

    Every store returns the same from ``read``: padded arrays of the newest 1000 events.

    Args:
        path: folder of its files, not there yet.
        histories: what kind of events it will hold.

    Attributes:
        name: in tables.
    """

    name: str

    def __init__(self, path: str, histories: Histories) -> None:
        self.path, self.blobs = path, Blobs(histories)

    @abstractmethod
    def fill(self, histories: Histories) -> None:
        """Stores all histories as well as the store can, and leaves it ready to read."""

    @abstractmethod
    def append(self, events: Columns) -> None:
        """Stores events of any users, on the disk when it returns; from any thread."""

    @abstractmethod
    def read(self, users: np.ndarray) -> Columns:
        """The newest 1000 events of each user, newest first, [B, 1000] by field."""

    @abstractmethod
    def bytes_stored(self) -> int:
        """Bytes on disk (or in memory, for a store in memory)."""

    @abstractmethod
    def reopen(self, cached: bool) -> None:
        """Closes and opens it; not ``cached``: it keeps no data of its own in memory."""

    @abstractmethod
    def close(self) -> None:
        """Ends the store."""

    def chill(self) -> None:
        """Makes the next read come from the disk."""
        self.reopen(cached=False)
        drop_page_cache(self.path)
