"""Which devices of a machine share a batch."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfx_pipeline.errors import SettingsError
from tfx_pipeline.settings.training_settings import TrainingSettings


def devices_of(settings: TrainingSettings, gpus: Sequence[str]) -> list[str]:
    """Names of the devices that compute parts of a batch; empty leaves the choice to TensorFlow.

    Tables, weights and optimisers are kept once, wherever TensorFlow puts them: the devices get the
    rows and weights of a step, and their gradients are added up before the one step is taken.
    (Mirrored variables would hold every table on every device.)

    Args:
        settings: ``devices``.
        gpus: Names of the GPUs that TensorFlow sees.

    Raises:
        SettingsError: There are not so many.

    Example:
        >>> devices_of(TrainingSettings(devices=0), ["/device:GPU:0", "/device:GPU:1"])
        ['/device:GPU:0', '/device:GPU:1']
    """
    wanted = settings.devices
    if wanted == 0:
        return list(gpus) if len(gpus) > 1 else []
    if wanted == 1:
        return []
    there = list(gpus) or [each.name for each in tf.config.list_logical_devices("CPU")]
    if wanted > len(there):
        raise SettingsError(
            f"section training: devices is {wanted}, and TensorFlow sees {len(there)} "
            f"({', '.join(there)}); give at most as many, or 0 for all GPUs"
        )
    return there[:wanted]
