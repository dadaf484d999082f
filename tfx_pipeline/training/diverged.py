"""A run whose numbers are not finite any more: where that began."""

from __future__ import annotations

import re

import tensorflow as tf

from tfx_pipeline.errors import PipelineError

EXIT_DIVERGED = 78
"""Exit code of such a run."""
_MARK = "not finite:"
_WHERE = re.compile(rf"{_MARK} ([^|]*)\|")


class DivergedError(PipelineError, ValueError):
    """Training met NaN or infinity; the last checkpoint is from before."""

    exit_code = EXIT_DIVERGED


def finite(value: tf.Tensor, where: str) -> tf.Tensor:
    """The value itself; the step fails before it changes anything if some of it is not finite.

    Args:
        value: Floats.
        where: What it is, for people.
    """
    return tf.debugging.check_numerics(value, f"{_MARK} {where}|")


def where_not_finite(error: tf.errors.InvalidArgumentError) -> str | None:
    """What ``finite`` was asked about when it failed; None if the error is another one."""
    found = _WHERE.search(error.message)
    return None if found is None else found[1]
