"""Is it faster to form the first product of the segments' network once per request?

python -m benchmarks.layers.shared_first_product \\
    --output benchmarks/layers/shared_first_product.json

The network's first product of a segment is a sum over its events,
``s W1 = sum_j,h a_hj (v_hj W1_h)``.
The products in brackets know no candidate, so many candidates can share them. That saves
multiply-accumulates; whether it saves time is measured here against ``SegmentedTargetAttention``
(``norm="none"``, keys and values formed), on TensorFlow with one thread, in processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
import tensorflow as tf

from laser_keras import SegmentedTargetAttention
from laser_keras.activations import activate
from laser_keras.segment_gates import open_gates, scaled_queries, segment_scores

WIDTH, LENGTH = 128, 1000


def shared(layer: SegmentedTargetAttention, target: Any, history: Any) -> Any:
    """The layer's segments [1, N, S, d], with the first product shared by the candidates."""
    weights, ffn, heads = layer._weights(), layer._ffn, layer.num_heads
    w, count, candidates = layer.segment_size, LENGTH // layer.segment_size, target.shape[1]
    scores = segment_scores(weights, scaled_queries(weights, target), history, None, w, False)
    gates = open_gates(scores, None, "sigmoid")[0]  # [N, heads, S, w]
    gates = tf.reshape(tf.transpose(gates, (2, 0, 1, 3)), (count, candidates, heads * w))
    values = tf.split(weights.value_kernel, heads, axis=1)
    first = tf.split(ffn.hidden_kernel, heads, axis=0)
    by_head = tf.concat([tf.matmul(v, k) for v, k in zip(values, first, strict=True)], axis=1)
    products = tf.reshape(tf.matmul(history[0], by_head), (count, w, heads, -1))
    products = tf.reshape(tf.transpose(products, (0, 2, 1, 3)), (count, heads * w, -1))
    hidden = activate(ffn.activation, tf.matmul(gates, products) + ffn.hidden_bias)
    events = tf.reshape(tf.matmul(history[0], weights.value_kernel), (count, w, heads, -1))
    gates = tf.reshape(gates, (count, candidates, heads, w))
    sums = tf.concat(
        [tf.matmul(gates[:, :, head], events[:, :, head]) for head in range(heads)], axis=-1
    )
    second = tf.matmul(tf.reshape(hidden, (-1, hidden.shape[-1])), ffn.output_kernel)
    segments = sums + tf.reshape(second + ffn.output_bias, tf.shape(sums))
    return tf.transpose(segments, (1, 0, 2))[None]


def measure(candidates: int, rounds: int) -> dict[str, Any]:
    """Least processor time of either form, taken in turn; they must agree."""
    layer = SegmentedTargetAttention(norm="none", implementation="project")
    layer.build((None, candidates, WIDTH), (None, LENGTH, WIDTH))
    target = tf.random.stateless_normal((1, candidates, WIDTH), (0, 1))
    history = tf.random.stateless_normal((1, LENGTH, WIDTH), (0, 2))
    forms = {
        "now": tf.function(lambda t, h: layer(t, h)),
        "shared": tf.function(lambda t, h: shared(layer, t, h)),
    }
    outputs = [form(target, history).numpy() for form in forms.values()]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=2e-5)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, form in forms.items():
            began = time.process_time()
            form(target, history)
            seconds[name].append(time.process_time() - began)
    least = {name: min(taken) for name, taken in seconds.items()}
    return {
        "candidates": candidates,
        "milliseconds": {name: round(1000 * value, 2) for name, value in least.items()},
        "speedup": round(least["now"] / least["shared"], 3),
    }


def main() -> None:
    """Measure for several numbers of candidates and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    cases = [measure(candidates, arguments.rounds) for candidates in (10, 25, 50, 100, 200)]
    result = {
        "command": "python -m benchmarks.layers.shared_first_product --output OUTPUT",
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load": [round(load, 1) for load in os.getloadavg()],
            "tensorflow": tf.__version__,
        },
        "width": WIDTH,
        "length": LENGTH,
        "cases": cases,
    }
    for case in cases:
        print(case)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
