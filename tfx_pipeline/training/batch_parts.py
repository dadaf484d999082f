"""Gradients of a batch as the sum over its parts: one after another, or on devices side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

Found = tuple[Any, tf.Tensor, list[tf.Tensor]]
Part = Callable[[Any, list[tf.Tensor], tf.Tensor], Found]


def sum_over_parts(
    part: Part,
    of_requests: Any,
    carried: Sequence[tf.Tensor],
    nothing: tuple[Any, tf.Tensor],
    micro_batches: int = 1,
    devices: Sequence[str] = (),
) -> Found:
    """What ``part`` says of a whole batch.

    The batch is cut among the devices, and each share into micro-batches, which are never in memory
    together. State that training carries goes from one micro-batch to the next; what the devices
    are left with is averaged.

    Args:
        part: ``part(of_requests, carried, number)`` takes tensors of some requests, the carried
            state and a number that no other part of the batch has. It returns sums over the
            requests, logits [requests, N] and the new carried state.
        of_requests: A nest of tensors whose first axis is the request's.
        carried: The state before the step.
        nothing: The sums and the logits [0, N] of no requests.
        micro_batches: Of each device.
        devices: Their names; empty computes where TensorFlow likes.

    Returns:
        As ``part``.

    Example:
        >>> def part(of_requests, carried, number):
        ...     return tf.reduce_sum(of_requests), of_requests, carried
        >>> batch = tf.constant([[1], [2], [3], [4], [5]])
        >>> total, logits, _ = sum_over_parts(part, batch, [], (0, batch[:0]), micro_batches=2)
        >>> int(total), logits.numpy().ravel()
        (15, array([1, 2, 3, 4, 5], dtype=int32))
    """
    if micro_batches == 1 and len(devices) <= 1:
        return part(of_requests, list(carried), tf.zeros([], tf.int64))
    size = tf.shape(tf.nest.flatten(of_requests)[0])[0]
    shares = max(1, len(devices))
    found = []
    for number in range(shares):
        share = _cut(of_requests, size * number // shares, size * (number + 1) // shares)
        first = number * micro_batches
        with tf.device(devices[number] if devices else None):
            found.append(
                _one_after_another(part, share, list(carried), nothing, micro_batches, first)
            )
    sums = [
        tf.add_n(parts) for parts in zip(*(tf.nest.flatten(each[0]) for each in found), strict=True)
    ]
    left = [tf.add_n(parts) / shares for parts in zip(*(each[2] for each in found), strict=True)]
    logits = tf.concat([each[1] for each in found], axis=0)
    return tf.nest.pack_sequence_as(nothing[0], sums), logits, left


def _one_after_another(
    part: Part,
    share: Any,
    carried: list[tf.Tensor],
    nothing: tuple[Any, tf.Tensor],
    micro_batches: int,
    first: int,
) -> Found:
    size = tf.shape(tf.nest.flatten(share)[0])[0]
    parts = tf.minimum(micro_batches, size)  # none is empty; the share of a device may be

    def one(number: tf.Tensor, sums: Any, logits: tf.Tensor, carried: list[tf.Tensor]) -> Any:
        requests = _cut(share, size * number // parts, size * (number + 1) // parts)
        more, answered, carried = part(requests, carried, tf.cast(first + number, tf.int64))
        return (
            number + 1,
            tf.nest.map_structure(tf.add, sums, more),
            tf.concat([logits, answered], axis=0),
            carried,
        )

    sums, logits = tf.nest.map_structure(tf.convert_to_tensor, nothing)
    _, sums, logits, carried = tf.while_loop(
        lambda number, *_: number < parts,
        one,
        (tf.zeros([], tf.int32), sums, logits, carried),
        shape_invariants=(
            tf.TensorShape([]),
            tf.nest.map_structure(lambda each: each.shape, sums),
            tf.TensorShape([None, None]),
            [each.shape for each in carried],
        ),
        parallel_iterations=1,
    )
    return sums, logits, carried


def _cut(of_requests: Any, begin: tf.Tensor, end: tf.Tensor) -> Any:
    return tf.nest.map_structure(lambda each: each[begin:end], of_requests)
