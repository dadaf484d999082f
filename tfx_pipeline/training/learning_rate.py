"""Learning rate schedules: warm-up over the first steps, then decay with progress."""

from __future__ import annotations

import math

import tensorflow as tf

from tfx_pipeline.settings.training_settings import TrainingSettings


def rate_of_progress(settings: TrainingSettings, done: float) -> float:
    """The factor of both learning rates after a share of the run.

    Args:
        settings: ``schedule`` and ``final_rate``.
        done: 0 at the start, 1 at the end.

    Example:
        >>> half = TrainingSettings(schedule="cosine", final_rate=0.0)
        >>> [round(rate_of_progress(half, done), 2) for done in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """
    if settings.schedule == "constant":
        return 1.0
    fallen = done if settings.schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
    return 1 - fallen * (1 - settings.final_rate)


def warm_up(settings: TrainingSettings, step: tf.Tensor) -> tf.Tensor | float:
    """The factor of both learning rates at a step (the first is 1): ``step / warmup_steps``."""
    if not settings.warmup_steps:
        return 1.0
    return tf.minimum(tf.cast(step, tf.float32) / settings.warmup_steps, 1.0)
