"""How HSTU sees time: integer ages become buckets, one pure function per dialect."""

import math

import numpy as np
from keras import ops

from laser_keras.sequence import exact_bucket, maximum_of
from laser_keras.types import Tensor

RESEARCH_ROWS = 129
"""Rows of the research dialect's table; int32 seconds reach the first 72 of them."""

PRODUCTION_ROWS = 2049
"""Rows of the production dialect's table; the last takes every age above eight years."""

# Smallest number of seconds of each bucket, as integers: every backend finds the same bucket.
_RESEARCH_EDGES = np.array(
    [0, *(math.ceil(math.exp(0.301 * k)) for k in range(1, 72))], dtype="int32"
)
_PRODUCTION_EDGES = np.array([60 * k**2 for k in range(PRODUCTION_ROWS)], dtype="int32")


def research_buckets(seconds: Tensor) -> Tensor:
    """``floor(ln(max(|seconds|, 1)) / 0.301)`` of int32 ``seconds``, exactly.

    The public code divides a natural logarithm by log10(2): a bucket is 1.35 times the last.

    >>> import keras
    >>> keras.ops.convert_to_numpy(research_buckets(np.array([0, 1, -2, 60, 86400]))).tolist()
    [0, 0, 2, 13, 37]
    """
    seconds = ops.cast(ops.absolute(seconds), "int32")
    logarithm = ops.log(ops.cast(ops.maximum(seconds, 1), "float32"))
    return exact_bucket(seconds, logarithm / 0.301, _RESEARCH_EDGES)


def production_buckets(age: Tensor) -> Tensor:
    """``floor(sqrt(age / 60))`` of int32 ages in seconds, exactly.

    >>> import keras
    >>> keras.ops.convert_to_numpy(production_buckets(np.array([0, 59, 60, 240, 2**30]))).tolist()
    [0, 0, 1, 2, 2048]
    """
    return exact_bucket(age, ops.sqrt(ops.cast(age, "float32") / 60.0), _PRODUCTION_EDGES)


def pair_seconds(age: Tensor, mask: Tensor) -> Tensor:
    """Seconds from token j to what *followed* token i, [B, S, S] for ages and mask [B, S].

    Tokens are newest first. A token's follower is the next newer valid one; the newest follows
    itself. (That is the public code's ``t[i + 1] - t[j]`` with the last timestamp repeated: when
    the next event happened is known at the moment it is to be predicted.)

    >>> import keras
    >>> age, mask = np.array([[10, 70, 500]]), np.array([[True, True, True]])
    >>> keras.ops.convert_to_numpy(pair_seconds(age, mask))[0].tolist()
    [[0, 60, 490], [0, 60, 490], [-60, 0, 430]]
    """
    index = ops.arange(ops.shape(age)[1], dtype="int32")
    newer = ops.logical_and(index[None, :] < index[:, None], ops.expand_dims(mask, 1))
    follower = maximum_of(ops.where(newer, index[None, None, :], -1), axis=-1)
    follower = ops.where(follower < 0, index[None, :], follower)
    following = ops.take_along_axis(age, follower, axis=1)
    return ops.expand_dims(age, 1) - ops.expand_dims(following, 2)
