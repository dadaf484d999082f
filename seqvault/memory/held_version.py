"""Short names for the parts of the present version."""

from seqvault.disk.manifest import Manifest
from seqvault.disk.segment import Segment
from seqvault.memory.field_layout import Layouts
from seqvault.memory.index import Index
from seqvault.memory.item_table import Items
from seqvault.memory.memtable import Memtable
from seqvault.memory.version import Version
from seqvault.schema import Schema


class HeldVersion:
    """Something that has a version at a time.

    Attributes:
        version: the present one.
    """

    version: Version

    @property
    def manifest(self) -> Manifest:
        """Of the version."""
        return self.version.manifest

    @property
    def schemas(self) -> list[Schema]:
        """Of the version."""
        return self.version.schemas

    @property
    def schema(self) -> Schema:
        """The schema in force."""
        return self.version.schemas[-1]

    @property
    def layouts(self) -> Layouts:
        """Of the version."""
        return self.version.layouts

    @property
    def index(self) -> Index:
        """Of the version."""
        return self.version.index

    @property
    def segments(self) -> dict[int, Segment]:
        """Of the version."""
        return self.version.segments

    @property
    def schema_of(self) -> dict[int, int]:
        """Of the version."""
        return self.version.schema_of

    @property
    def memtable(self) -> Memtable:
        """Of the version."""
        return self.version.memtable

    @property
    def items(self) -> Items:
        """Of the version."""
        return self.version.items
