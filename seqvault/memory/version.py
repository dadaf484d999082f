"""An immutable version of everything that reads see, replaced as a whole."""

from dataclasses import dataclass, field

from seqvault.disk.manifest import Manifest
from seqvault.disk.segment import Segment
from seqvault.memory.field_layout import Layouts
from seqvault.memory.index import Index
from seqvault.memory.item_table import Items
from seqvault.memory.memtable import Memtable
from seqvault.schema import Schema


@dataclass(frozen=True)
class Version:
    """A consistent snapshot of everything that a read needs.

    A version is never changed in part: whoever replaces segments, the memtable or the
    manifest makes another version and puts it in place of this one under the store's
    lock. Two things grow within a version, under that lock: an append adds users to the
    index and events to the memtable, at their ends. A read takes the version, and from its
    index and memtable what it needs, in one hold of the lock; what it took stays valid
    without the lock for as long as the read holds on to it.

    Args:
        manifest: what the store consists of on disk.
        schemas: all schemas of the store, the one in force last.
        layouts: where each field is in the records of each schema.
        index: users, and where their records are.
        segments: open segment files by number.
        schema_of: schema of each segment by number.
        memtable: events of the log that are not in segments.
        items: the item table, which has a lock of its own.
    """

    manifest: Manifest
    schemas: list[Schema]
    layouts: Layouts
    index: Index
    memtable: Memtable
    items: Items
    segments: dict[int, Segment] = field(default_factory=dict)
    schema_of: dict[int, int] = field(default_factory=dict)

    @property
    def schema(self) -> Schema:
        """The schema in force."""
        return self.schemas[-1]

    def oldest(self, seconds: float) -> int:
        """Time from which on events are kept, ms; ``seconds`` since 1970 is the present."""
        keep = self.manifest.retention_ms
        return max(0, round(seconds * 1000) - keep) if keep else 0
