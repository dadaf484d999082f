"""The result of ``read_items``: side information in the shape of the ids."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from seqvault.errors import UnknownFieldError


@dataclass(frozen=True)
class ItemBatch:
    """Side information of items.

    Args:
        item_ids: int64, any shape, as asked for.
        found: bool, same shape: whether the item is known.
        columns: by field name, the ids' shape (plus ``[d]`` for vectors). Unknown
            items have 0, or "" for strings.
        version: number of the last ``put_items`` that the answer includes.
    """

    item_ids: np.ndarray
    found: np.ndarray
    columns: Mapping[str, np.ndarray]
    version: int

    def __getitem__(self, name: str) -> np.ndarray:
        """The array of a field.

        Raises:
            UnknownFieldError: it was not asked for.
        """
        try:
            return self.columns[name]
        except KeyError:
            raise UnknownFieldError(
                f"item field {name!r} is not in this batch, which has "
                f"{', '.join(self.columns) or 'none'}; name it in read_items(fields=...)."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self.columns
