"""A closure that runs in this process, where others are given to workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


class RunHere:
    """Runs a closure when it is first waited for, and answers like what a coordinator gives.

    Args:
        closure: What to run.
        *arguments: What it takes.
    """

    def __init__(self, closure: Callable[..., Any], *arguments: tf.Tensor) -> None:
        self._closure: Callable[..., Any] | None = closure
        self._arguments = arguments
        self._error: tf.errors.OpError | None = None

    def get(self) -> None:
        """Run it, or raise again what it raised.

        Raises:
            tf.errors.OpError: The closure's.
        """
        closure, self._closure = self._closure, None
        if closure is not None:
            try:
                closure(*self._arguments)
            except tf.errors.OpError as error:
                self._error = error
        if self._error is not None:
            raise self._error


def give_out(coordinator: Any, closure: Callable[..., Any], *arguments: tf.Tensor) -> Any:
    """Schedule a closure on a worker of a cluster, or make it a ``RunHere`` where there is none."""
    if coordinator is None:
        return RunHere(closure, *arguments)
    return coordinator.schedule(closure, args=arguments)


def drained(coordinator: Any, error: tf.errors.OpError) -> tf.errors.OpError:
    """Wait until no worker does anything any more; the error that was raised last, or this one."""
    while coordinator is not None:
        try:
            coordinator.join()
            break
        except tf.errors.OpError as other:
            error = other
    return error
