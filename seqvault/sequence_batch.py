"""The result of a read: histories of a batch of users as padded arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault.errors import UnknownFieldError


@dataclass(frozen=True)
class SequenceBatch:
    """Histories of B users, newest first, padded on the right with 0.

    Args:
        user_ids: int64 [B], as asked for.
        lengths: int32 [B], number of events of each row.
        columns: arrays [B, L] by field name; L is the ``last_n`` of the read.
        version: int64 [B], the number of events that had arrived for each user when the history was
            read. Passed to ``read(..., version=)`` it repeats exactly the same read, whatever
            arrived since.
    """

    user_ids: np.ndarray
    lengths: np.ndarray
    columns: Mapping[str, np.ndarray]
    version: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        """The [B, L] array of a field.

        Raises:
            UnknownFieldError: the read did not ask for it.
        """
        try:
            return self.columns[name]
        except KeyError:
            raise UnknownFieldError(
                f"field {name!r} is not in this batch, which has {', '.join(self.columns)}; "
                "name it in read(fields=...)."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def mask(self) -> np.ndarray:
        """bool [B, L], True where there is an event."""
        width = next(iter(self.columns.values())).shape[1] if self.columns else 0
        return np.arange(width)[None, :] < self.lengths[:, None]

    def to_arrow(self) -> pa.RecordBatch:
        """One row per user: ``user_id``, ``version`` and a list column per field."""
        mask = self.mask
        offsets = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32)
        arrays: list[Any] = [pa.array(self.user_ids), pa.array(self.version)]
        for values in self.columns.values():
            arrays.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[mask])))
        return pa.RecordBatch.from_arrays(arrays, ["user_id", "version", *self.columns])
