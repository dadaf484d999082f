"""Data and plain NumPy parts that the tests of the encoders share."""

import math

import laser_reference as reference
import numpy as np

D, L, N = 8, 11, 3
RNG = np.random.default_rng(7)
TARGET = RNG.normal(size=(3, N, D)).astype("float32")
HISTORY = RNG.normal(size=(3, L, D)).astype("float32")
MASK = np.arange(L) < np.array([[L], [5], [0]])
AGE = np.sort(RNG.integers(0, 3 * 10**6, (3, L)), axis=1).astype("int32")


def heads_of(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(*x.shape[:-1], heads, -1)


def target_attention(
    t: np.ndarray,
    h: np.ndarray,
    w: dict[str, np.ndarray],
    heads: int,
    mask: np.ndarray,
    score: str = "softmax",
    prefix: str = "",
) -> np.ndarray:
    """One target [d] over the events [L, d] that ``mask`` marks."""
    values = h @ w[f"{prefix}value_kernel"]
    if not mask.any():
        return np.zeros(values.shape[-1])
    q = heads_of(t @ w[f"{prefix}query_kernel"], heads)
    k = heads_of(h[mask] @ w[f"{prefix}key_kernel"], heads)
    v = heads_of(values[mask], heads)
    outputs = []
    for i in range(heads):
        scores = k[:, i] @ q[i] / math.sqrt(q.shape[-1])
        a = reference.softmax(scores) if score == "softmax" else reference.sigmoid(scores)
        outputs.append(a @ v[:, i])
    return np.concatenate(outputs)


def silu(x: np.ndarray) -> np.ndarray:
    return x * reference.sigmoid(x)
