"""How rows and their gradients travel between parameter servers and workers."""

from __future__ import annotations

import re

import tensorflow as tf

from tfx_pipeline.errors import PipelineError
from tfx_pipeline.training.row_frames import check_ops_are_built, load_ops

NONE, BF16, ZSTD, BF16_ZSTD = "none", "bf16", "zstd", "bf16+zstd"
CODECS = (NONE, BF16, ZSTD, BF16_ZSTD)
EXIT_DAMAGED_FRAME = 74
"""Exit code of a run whose rows arrived damaged (EX_IOERR)."""


class DamagedFrameError(PipelineError):
    """Rows or gradients arrived other than they were sent; the last checkpoint is from before."""

    exit_code = EXIT_DAMAGED_FRAME


def encoded(values: tf.Tensor, codec: str) -> tf.Tensor:
    """What is sent; compute it where the values are.

    Args:
        values: float32 [U, width].
        codec: ``none`` sends them as they are. ``bf16`` rounds each to bfloat16, half the bytes:
            8 bits of precision, and the range of float32. ``zstd`` and ``bf16+zstd`` pack the one
            or the other into a frame of Zstandard with a checksum, without loss; their ops must be
            built (``row_frames``). Tables and accumulators stay float32.

    Example:
        >>> encoded(tf.constant([[1.001]]), "bf16").dtype.name
        'bfloat16'
    """
    if codec in (BF16, BF16_ZSTD):
        values = tf.cast(values, tf.bfloat16)
    return load_ops().laser_pack_rows(rows=values) if codec in (ZSTD, BF16_ZSTD) else values


def decoded(sent: tf.Tensor, codec: str, count: tf.Tensor, width: int) -> tf.Tensor:
    """float32 [count, width] again; compute it where they are needed.

    Args:
        sent: What ``encoded`` returned.
        codec: The same.
        count: int32 scalar, number of rows.
        width: Numbers per row.

    Raises:
        tf.errors.DataLossError: The frame is not what was sent (zstd codecs alone can tell).
    """
    if codec in (ZSTD, BF16_ZSTD):
        kind = tf.bfloat16 if codec == BF16_ZSTD else tf.float32
        sent = load_ops().laser_unpack_rows(frame=sent, count=count, T=kind, width=width)
        sent.set_shape([None, width])
    return tf.cast(sent, tf.float32)


def check_codec(codec: str) -> None:
    """Raise unless this machine can send and receive so.

    Raises:
        SettingsError: Its ops are not built; names the command that does it.
    """
    if codec in (ZSTD, BF16_ZSTD):
        check_ops_are_built()


def damage_of(error: tf.errors.DataLossError) -> str | None:
    """What was wrong with a frame that was refused; None if it was, say, a file of Examples."""
    found = _DAMAGE.search(error.message)
    return None if found is None else found[1]


_DAMAGE = re.compile(r"a frame of rows is damaged: ([^\n]*)")
