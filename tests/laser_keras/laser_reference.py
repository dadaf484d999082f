"""Equations 3 to 12 of the LASER paper in plain NumPy, float64, one candidate at a time.

Nothing is shared with the layers. ``sta_loop`` is the paper's naive loop over segments,
``sta_vectorised`` its optimised form (section 3.5.1).
"""

import math

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gain + bias


def feed_forward(x: np.ndarray, w: dict[str, np.ndarray], prefix: str) -> np.ndarray:
    hidden = gelu(x @ w[f"{prefix}hidden_kernel"] + w[f"{prefix}hidden_bias"])
    return hidden @ w[f"{prefix}output_kernel"] + w[f"{prefix}output_bias"]


def sta_loop(
    t: np.ndarray,
    h: np.ndarray,
    w: dict[str, np.ndarray],
    *,
    heads: int,
    key_dim: int,
    segment_size: int,
    mask: np.ndarray | None = None,
    gate: str = "sigmoid",
    gamma: float | None = None,
) -> np.ndarray:
    """Unrefined segments [S, d] of one candidate ``t`` [d] and one history ``h`` [L, d]."""
    length, width = h.shape
    valid = np.ones(length, bool) if mask is None else mask
    dv = width // heads
    zero_k, zero_v = np.zeros(heads * key_dim), np.zeros(width)
    segments = []
    for start in range(0, length, segment_size):
        parts = []
        for head in range(heads):
            ks, vs = slice(head * key_dim, (head + 1) * key_dim), slice(head * dv, (head + 1) * dv)
            q = t @ w["query_kernel"][:, ks] + w.get("query_bias", zero_k)[ks]
            rows = [j for j in range(start, min(start + segment_size, length)) if valid[j]]
            total = np.zeros(dv)
            scores = np.array(
                [
                    q
                    @ (h[j] @ w["key_kernel"][:, ks] + w.get("key_bias", zero_k)[ks])
                    / (math.sqrt(key_dim) if gamma is None else gamma)
                    + w.get("score_bias", np.zeros(heads))[head]
                    for j in rows
                ]
            )
            if rows:
                gates = sigmoid(scores) if gate == "sigmoid" else softmax(scores)
                for a, j in zip(gates, rows):
                    total += a * (h[j] @ w["value_kernel"][:, vs] + w.get("value_bias", zero_v)[vs])
            parts.append(total)
        segments.append(np.concatenate(parts))
    return np.stack(segments)


def sta_vectorised(
    t: np.ndarray, h: np.ndarray, w: dict[str, np.ndarray], *, key_dim: int, segment_size: int
) -> np.ndarray:
    """Equations 8 to 12, one head, no mask, L a multiple of w."""
    length, width = h.shape
    q = t @ w["query_kernel"]
    keys, values = h @ w["key_kernel"], h @ w["value_kernel"]
    alpha = sigmoid(q @ keys.T / math.sqrt(key_dim))
    alpha = alpha.reshape(length // segment_size, 1, segment_size)
    values = values.reshape(length // segment_size, segment_size, width)
    return (alpha @ values)[:, 0, :]


def refine(s: np.ndarray, w: dict[str, np.ndarray], epsilon: float = 1e-6) -> np.ndarray:
    """Equation 6; the weights of the layer's sublayers carry their names as prefixes."""
    ffn = next(k for k in w if k.endswith("hidden_kernel")).removesuffix("hidden_kernel")
    norm = next(k for k in w if k.endswith("gamma")).removesuffix("gamma")
    return layer_norm(feed_forward(s, w, ffn) + s, w[f"{norm}gamma"], w[f"{norm}beta"], epsilon)


def gsta(
    t: np.ndarray,
    s: np.ndarray,
    w: dict[str, np.ndarray],
    *,
    layers: int,
    heads: int,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Equation 7 with heads: ``t`` [d], ``s`` [S, d]."""
    width = t.shape[0]
    dh = width // heads
    valid = np.ones(s.shape[0], bool) if mask is None else mask
    if not valid.any():
        return t
    s = s[valid]
    for layer in range(layers):
        q = t @ w[f"query_kernel_{layer}"]
        keys, values = s @ w[f"key_kernel_{layer}"], s @ w[f"value_kernel_{layer}"]
        outputs = []
        for head in range(heads):
            e = slice(head * dh, (head + 1) * dh)
            outputs.append(softmax(q[e] @ keys[:, e].T / math.sqrt(dh)) @ values[:, e])
        t = t + np.concatenate(outputs)
    return t


def fuse(z: np.ndarray, s: np.ndarray, recent: int, mask: np.ndarray) -> np.ndarray:
    """[2 + R, d]: z, the maximum over valid segments, the R newest segments."""
    salient = s[mask].max(axis=0) if mask.any() else np.zeros_like(z)
    newest = [s[i] if mask[i] else np.zeros_like(z) for i in range(recent)]
    return np.stack([z, salient, *newest])
