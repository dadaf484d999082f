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
        gpus: What ``gpus_of_a_worker`` found.

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
    there = list(gpus) or _of_each_worker(_names(), "CPU")
    if wanted > len(there):
        raise SettingsError(
            f"section training: devices is {wanted}, and TensorFlow sees {len(there)} "
            f"({', '.join(there)}); give at most as many, or 0 for all GPUs"
        )
    return there[:wanted]


def gpus_of_a_worker(names: Sequence[str] | None = None) -> list[str]:
    """GPUs that every process has which computes steps: this one, or each worker of its cluster.

    Args:
        names: Of all devices; None asks TensorFlow.

    Example:
        >>> gpus_of_a_worker(["/device:CPU:0", "/device:GPU:0"])
        ['/device:GPU:0']
    """
    return _of_each_worker(_names() if names is None else names, "GPU")


def _of_each_worker(names: Sequence[str], kind: str) -> list[str]:
    """Names without a task: a step on a worker means that worker's own."""
    devices = [tf.DeviceSpec.from_string(name) for name in names]
    workers = [each for each in devices if each.job == "worker"] or devices
    tasks = {each.task for each in workers}
    counts = [
        sum(each.device_type == kind for each in workers if each.task == task) for task in tasks
    ]
    return [f"/device:{kind}:{number}" for number in range(min(counts, default=0))]


def _names() -> list[str]:
    return [device.name for device in tf.config.list_logical_devices()]
