"""Metrics of a run for people and machines: TensorBoard, JSON lines and a Prometheus textfile."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from threading import Lock
from typing import Any

import tensorflow as tf

JSON_LINES = "metrics.jsonl"
TEXTFILE = "metrics.prom"
_PREFIX = "laser_training"


class MetricsLog:
    """Writes scalars, each time all of them at one step.

    ``metrics.jsonl`` gets a line per call, ``metrics.prom`` always holds the newest value of each
    metric for node_exporter's textfile collector, and TensorBoard gets a scalar each.

    Args:
        directory: Where to; None writes nothing.
    """

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._newest: dict[str, float] = {}
        self._writer = tf.summary.create_file_writer(directory) if directory else None
        self._lock = Lock()  # the watcher of progress and the loop both write

    @property
    def is_on(self) -> bool:
        """Whether anything is written."""
        return self._writer is not None

    def write(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Write scalars.

        Args:
            split: ``train``, ``eval``, ...; names of metrics begin with it.
            step: Training steps so far.
            values: By name. NaN says that there is no value: it is left out.
        """
        known = {name: float(value) for name, value in values.items() if not math.isnan(value)}
        if self._writer is None or self._directory is None:
            return
        with self._lock:
            with self._writer.as_default(step=step):
                for name, value in known.items():
                    tf.summary.scalar(f"{split}/{name}", value)
            self._writer.flush()
            line = {"time": time.time(), "step": step, "split": split, **known}
            with tf.io.gfile.GFile(f"{self._directory}/{JSON_LINES}", "a") as file:
                file.write(json.dumps(line) + "\n")
            self._newest.update({f"{split}_{name}": value for name, value in known.items()})
            self._newest["step"] = step
            fresh = f"{self._directory}/{TEXTFILE}.tmp"
            with tf.io.gfile.GFile(fresh, "w") as file:
                file.write(textfile(self._newest))
            tf.io.gfile.rename(fresh, f"{self._directory}/{TEXTFILE}", overwrite=True)

    def histogram(self, name: str, step: int, values: Any) -> None:
        """Write a histogram, which only TensorBoard can show."""
        if self._writer is not None:
            with self._lock, self._writer.as_default(step=step):
                tf.summary.histogram(name, values)


def textfile(values: Mapping[str, float]) -> str:
    """Gauges in Prometheus' text format.

    Example:
        >>> print(textfile({"eval_auc": 0.75}), end="")
        # HELP laser_training_eval_auc Newest value of eval_auc.
        # TYPE laser_training_eval_auc gauge
        laser_training_eval_auc 0.75
    """
    lines = []
    for name, value in sorted(values.items()):
        metric = f"{_PREFIX}_{re.sub('[^a-zA-Z0-9_]', '_', name)}"
        shown = {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, repr(value))
        lines.append(f"# HELP {metric} Newest value of {name}.")
        lines += [f"# TYPE {metric} gauge", f"{metric} {shown}"]
    return "".join(f"{line}\n" for line in lines)
