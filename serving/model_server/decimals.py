"""Floats as TensorFlow Serving writes them in JSON."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def format_decimals(values: NDArray) -> list[bytes]:
    """Floats as ``%g`` if six digits say it exactly, else with 9 (float32) or 17 digits.

    Example:
        >>> format_decimals(np.array([0.2, 3, 5e9, 61728396, float("nan")], np.float32))
        [b'0.2', b'3.0', b'5e+09', b'61728396.0', b'NaN']
    """
    flat = values.ravel()
    texts = [f"{value:g}" for value in flat.tolist()]
    digits = 9 if flat.dtype == np.float32 else 17
    with np.errstate(over="ignore", invalid="ignore"):
        back = np.array(texts, np.float64).astype(flat.dtype)
    finite = np.isfinite(flat)
    for index in np.flatnonzero(finite & (back != flat)):
        texts[index] = f"{float(flat[index]):.{digits}g}"
    for index in np.flatnonzero(~finite):
        value = flat[index]
        texts[index] = "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return [
        (text if "." in text or "e" in text or text[-1] in "Ny" else text + ".0").encode()
        for text in texts
    ]
