"""How rows and their gradients travel between parameter servers and workers."""

from __future__ import annotations

import tensorflow as tf

NONE, BF16 = "none", "bf16"
CODECS = (NONE, BF16)


def encoded(values: tf.Tensor, codec: str) -> tf.Tensor:
    """What is sent; compute it where the values are.

    Args:
        values: float32.
        codec: ``none`` sends them as they are; ``bf16`` rounds each to bfloat16, half the bytes:
            8 bits of precision, and the range of float32. Tables and accumulators stay float32.

    Example:
        >>> encoded(tf.constant([1.001]), "bf16").dtype.name
        'bfloat16'
    """
    return tf.cast(values, tf.bfloat16) if codec == BF16 else values


def decoded(values: tf.Tensor) -> tf.Tensor:
    """float32 again; compute it where they are needed."""
    return tf.cast(values, tf.float32)
