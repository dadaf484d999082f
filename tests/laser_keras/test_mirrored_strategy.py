"""``fit`` of a ranker on two devices: Keras builds it from a batch that the replicas share."""

import os
import subprocess
import sys

import keras
import pytest

SCRIPT = """
import sys
import keras
import numpy as np
import tensorflow as tf
from laser_keras import LaserRanker

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

rng = np.random.default_rng(0)
inputs = {
    "history": rng.normal(size=(4, 6, 5)).astype("float32"),
    "history_mask": np.arange(6) < np.array([[6], [3], [0], [5]]),
    "history_age": rng.integers(0, 10**6, (4, 6)).astype("int32"),
    "target": rng.normal(size=(4, 2, 3)).astype("float32"),
}
labels = np.array([[0, 1], [1, 1], [0, 0], [1, 0]], "float32")

def fitted(mask_dtype, called, strategy, start=None):
    x = {**inputs, "history_mask": inputs["history_mask"].astype(mask_dtype)}
    with strategy.scope():
        ranker = LaserRanker(
            dim=4, key_dim=2, segment_size=2, num_recent_segments=1, num_layers=1, ffn_expansion=0,
            mixer="mlp", mixer_dim=4, mixer_blocks=1,
        )
        ranker.compile(
            keras.optimizers.SGD(0.1), "binary_crossentropy", jit_compile=False,
            run_eagerly=start is None,
        )
        if called:
            ranker(x)
    start = start or ranker.get_weights()
    same_start = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: ranker.set_weights(start)
    )
    ranker.fit(x, labels, batch_size=4, shuffle=False, verbose=0, callbacks=[same_start])
    return start, ranker.get_weights()

start, expected = fitted("bool", True, tf.distribute.get_strategy())
assert max(abs(a - b).max() for a, b in zip(start, expected)) > 1e-3
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
_, found = fitted(sys.argv[1], sys.argv[2] == "called", two, start)
for a, b in zip(found, expected):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
"""


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a strategy of TensorFlow")
@pytest.mark.parametrize(
    "arguments", [("bool", "not called"), pytest.param(("int8", "called"), marks=pytest.mark.long)]
)
def test_fit_on_two_devices_learns_what_it_learns_on_one(arguments: tuple[str, str]) -> None:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
