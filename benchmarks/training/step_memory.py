"""Peak memory of a training step of the whole ranker, beside one with the paper's form of LASER.

    python -m benchmarks.training.step_memory --output FILE

The forward and backward pass of a ranker (tokens, encoder, RankMixer, head) on a batch of requests
in memory, each form in a process of its own: what the step adds to the resident memory at its
peak, traced beforehand. The paper's form (``PaperForm``) has the
same weights and takes each candidate with a copy of its history, as impression-level batches do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.training.provenance import provenance

SEED = 17
FORMS = ("laser", "paper_form")
WIDTH = 48  # of the tables' rows of an event, and of a candidate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="requests")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        form, candidates = arguments.one
        print(json.dumps(step_peak_mb(form, int(candidates), arguments)))
        return
    if arguments.output is None:
        parser.error("give --output")
    cases = []
    for candidates in arguments.candidates:
        case: dict[str, Any] = {"candidates": candidates}
        for form in FORMS:
            case[f"{form}_mb"] = in_own_process(form, candidates, arguments)
        case["of_paper_form"] = round(case["laser_mb"] / case["paper_form_mb"], 3)
        cases.append(case)
        print(case, flush=True)
    sizes = {name: getattr(arguments, name) for name in ("length", "dim", "batch")}
    result = {**provenance("step_memory", SEED), **sizes, "cases": cases}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def in_own_process(form: str, candidates: int, arguments: argparse.Namespace) -> float:
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("length", "dim", "batch")]
    command = [sys.executable, "-m", "benchmarks.training.step_memory", *sizes]
    # Freed memory goes back to the system at once instead of hiding the next allocation.
    returning = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    ended = subprocess.run(
        [*command, "--one", form, str(candidates)],
        env={**os.environ, **returning}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return float(ended.stdout.splitlines()[-1])


def step_peak_mb(form: str, candidates: int, arguments: argparse.Namespace) -> float:
    import tensorflow as tf

    from benchmarks.layers.paper_form import PaperForm
    from laser_keras import LaserEncoder
    from laser_keras.models.sequence_ranker import SequenceRanker

    encoder = PaperForm() if form == "paper_form" else LaserEncoder.as_printed()
    ranker = SequenceRanker(
        encoder, dim=arguments.dim, mixer_dim=arguments.dim, activation="linear", shared_width=WIDTH
    )
    rng, batch, length = np.random.default_rng(SEED), arguments.batch, arguments.length
    inputs = {
        "history": tf.constant(rng.normal(0, 0.05, (batch, length, WIDTH)), tf.float32),
        "history_mask": tf.ones([batch, length], tf.bool),
        "history_age": tf.constant(np.sort(rng.integers(1, 10**6, (batch, length))), tf.int32),
        "target": tf.constant(rng.normal(0, 0.05, (batch, candidates, WIDTH)), tf.float32),
    }
    ranker.build({name: (None, *value.shape[1:]) for name, value in inputs.items()})
    labels = tf.cast(rng.random((batch, candidates)) < 0.3, tf.float32)
    weights = [each.value for each in ranker.trainable_variables]

    @tf.function(autograph=False)
    def step() -> Any:
        with tf.GradientTape() as tape:
            tape.watch([inputs["history"], inputs["target"]])
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, ranker(inputs, training=True))
            loss = tf.reduce_mean(losses)
        return loss, tape.gradient(loss, [*weights, inputs["history"], inputs["target"]])

    run = step.get_concrete_function()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
    before = resident_kb("VmRSS")
    run()
    return round((resident_kb("VmHWM") - before) / 1024, 1)


def resident_kb(field: str) -> int:
    """From Linux' process status."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0])


if __name__ == "__main__":
    main()
