"""The answer of a read without padding, where a kernel wrote it."""

from dataclasses import dataclass

import numpy as np

from seqvault.memory.field_layout import Layout


@dataclass(frozen=True)
class Ragged:
    """Events of one user behind the other's, field by field.

    Args:
        layout: of the fields.
        out: uint8, whose memory holds the values.
        starts: int64 [C], where each field begins in ``out``.
        lengths: int32 [B], events of each user.
        version: int64 [B].
    """

    layout: Layout
    out: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    version: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """Flat arrays by field name, views of ``out``."""
        total = (int(self.lengths.sum()),)
        layout = self.layout
        placed = zip(layout.names, layout.dtypes, self.starts.tolist(), strict=True)
        return {name: np.ndarray(total, kind, self.out, at) for name, kind, at in placed}
