"""Values of fields as the integers that the codec packs."""

import numpy as np


def to_bits(values: np.ndarray) -> np.ndarray:
    """int64 that the codec packs: the value of an integer, the bits of a float."""
    if values.dtype.kind == "f":
        values = values.view(f"u{values.dtype.itemsize}")
    return values.astype(np.int64)
