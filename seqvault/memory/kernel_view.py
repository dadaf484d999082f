"""The view of a store that kernels read from, as one array."""

import numpy as np

from seqvault.codec.bundles import bundle
from seqvault.disk.segment import Segment
from seqvault.memory.index import Index
from seqvault.memory.memtable import Memtable

_NO_SEGMENT = (1 << 63) - 1


class ReadView:
    """The arrays of the index, the open segments and the memtable at one moment.

    Its arrays and descriptors stay valid as long as a reference to the view exists; later changes
    make a new view.

    Args:
        index, memtable, segments: of the store, under its lock.

    Attributes:
        words: int64, the bundle of them; its parts are those of ``codec.bundles``.
    """

    def __init__(self, index: Index, memtable: Memtable, segments: dict[int, Segment]) -> None:
        self._index, self._index_revision = index, index.revision
        self._memtable, self._memtable_revision = memtable, memtable.revision
        self._segments = segments
        numbers = sorted(segments)
        files = [
            np.array(values, np.int64)
            for values in (  # the last is of none, for a look-up during a change elsewhere
                [*numbers, _NO_SEGMENT],
                [*(segments[number].fd for number in numbers), -1],
                [*(segments[number].schema_id for number in numbers), 0],
            )
        ]
        self._held: tuple[np.ndarray, ...] = (
            *index.arrays, *files,
            memtable.heads, memtable.links, memtable.columns["timestamp"], memtable.addresses,
            memtable.depths, memtable.runs, memtable.summaries,
        )  # fmt: skip
        self._columns = memtable.columns  # that the addresses are of
        self.words = bundle(self._held)

    def is_of(self, index: Index, memtable: Memtable, segments: dict[int, Segment]) -> bool:
        """Whether the view is still current for these."""
        return (
            self._memtable is memtable
            and self._memtable_revision == memtable.revision
            and self._index is index
            and self._index_revision == index.revision
            and self._segments is segments
        )
