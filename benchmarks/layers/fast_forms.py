"""Which cheaper form of a LASER encoder's training step pays on this processor?

python -m benchmarks.layers.fast_forms --output benchmarks/layers/fast_forms.json

A forward and backward pass of ``LaserEncoder(norm="none")`` on TensorFlow with one thread, as it is
and: compiled by XLA, in bfloat16 (``mixed_bfloat16``), with a hidden layer of twice the width in
place of four times, with ReLU in place of GELU, and with both of these. Processor time; the forms
take turns. What the cheaper networks cost in AUC is ``benchmarks/paper/fast.yaml``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
import tensorflow as tf

from laser_keras import LaserEncoder

REQUESTS, LENGTH, CANDIDATES, SEED = 32, 1000, 10, 0
NARROW, RELU = {"ffn_expansion": 2}, {"activation": "relu"}
FORMS: dict[str, tuple[dict[str, Any], bool]] = {
    "as it is": ({}, False),
    "XLA": ({}, True),
    "bfloat16": ({"dtype": "mixed_bfloat16"}, False),
    "hidden width 2d": (NARROW, False),
    "ReLU": (RELU, False),
    "hidden width 2d, ReLU": ({**NARROW, **RELU}, False),
    "hidden width 2d, ReLU, bfloat16": ({**NARROW, **RELU, "dtype": "mixed_bfloat16"}, False),
}


def step_of(options: dict[str, Any], jit: bool, width: int) -> Callable[[], None]:
    """A step of a new encoder on random inputs, compiled and run once."""
    random = np.random.default_rng(SEED)
    target, history = (
        tf.constant(random.normal(size=(REQUESTS, count, width)), tf.float32)
        for count in (CANDIDATES, LENGTH)
    )
    encoder = LaserEncoder(implementation="absorb", **options)
    encoder(target, history)

    @tf.function(jit_compile=jit)
    def gradients() -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch([target, history])
            loss = tf.reduce_sum(tf.cast(encoder(target, history), tf.float32) ** 2)
        return tape.gradient(loss, [target, history, *encoder.trainable_variables])

    def step() -> None:
        gradients()[0].numpy()

    step()
    return step


def measure(width: int, rounds: int) -> dict[str, Any]:
    """Median processor time of each form in milliseconds a request."""
    steps = {name: step_of(*form, width) for name, form in FORMS.items()}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.process_time()
            step()
            taken[name].append(1000 * (time.process_time() - began) / REQUESTS)
    median = {name: float(np.median(times)) for name, times in taken.items()}
    return {
        "width": width,
        "milliseconds": {name: round(value, 3) for name, value in median.items()},
        "speedup": {name: round(median["as it is"] / value, 3) for name, value in median.items()},
    }


def main() -> None:
    """Measure both widths and write the raw result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    load = [round(each, 1) for each in os.getloadavg()]
    result = {
        "command": "python -m benchmarks.layers.fast_forms --output OUTPUT",
        "seed": SEED,
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "load": load,
            "tensorflow": tf.__version__,
        },
        "requests": REQUESTS,
        "length": LENGTH,
        "candidates": CANDIDATES,
        "cases": [measure(width, arguments.rounds) for width in (32, 128)],
    }
    print(json.dumps(result["cases"], indent=1))
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name, and whether it multiplies bfloat16."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in found.items()}
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if unit in named.get("flags", "")]
    return f"{named.get('model name', platform.processor())}, {' '.join(units) or 'no bfloat16'}"


if __name__ == "__main__":
    main()
