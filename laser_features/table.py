"""One embedding table of a feature spec."""

from __future__ import annotations

from dataclasses import dataclass

ID_KINDS = ("direct", "hash", "vocabulary")


@dataclass(frozen=True)
class Table:
    """An embedding table: ``rows`` rows of ``width`` numbers, row 0 for missing and padding.

    ``ids`` says how a field's value becomes a row: ``direct`` (row = id + 1), ``hash``
    (row = 1 + splitmix64(id) % (rows - 1)) or ``vocabulary`` (a full pass over the data decides).

    Example:
        >>> Table("item", rows=8192, width=32, ids="direct").rows
        8192
    """

    name: str
    rows: int
    width: int
    ids: str

    def to_dict(self) -> dict[str, object]:
        """The entry of this table in a feature spec."""
        return {"rows": self.rows, "width": self.width, "ids": self.ids}
