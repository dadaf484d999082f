"""Forms of a step that must learn the same: in parts, on several devices, compiled, in bfloat16."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tfx_pipeline.errors import SettingsError
from tfx_pipeline.settings.section import check, plain
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.compiled_tower import in_buckets
from tfx_pipeline.training.devices import devices_of, gpus_of_a_worker
from tfx_pipeline.training.example_files import batches_of_file
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer


@pytest.fixture(scope="module")
def files(plain_spec, write_files, tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("examples"), plain_spec, files=1, requests=39)


@pytest.fixture(scope="module")
def model(laser_settings):
    return replace(laser_settings, dropout=0.0)


@pytest.fixture(scope="module")
def small(model_settings):
    """Where it does not matter what the step computes."""
    return replace(model_settings, dropout=0.0)


@pytest.fixture(scope="module")
def learn(plain_spec, settings, files):
    """Takes the three steps of a file, the last with fewer requests; state and what steps said."""

    def learned(model, **changed):
        each = replace(settings, table_l2=0.01, clip_norm=1.0, **changed)
        trainer = Trainer(plain_spec, model, each, RowLookup(), report=lambda _: None)
        batches = batches_of_file(files[0], plain_spec, each, "click", None)
        said = [trainer.step.train(batch) for batch in batches]
        return trainer.numpy_state(), [float(loss) for *_, loss in said], said

    return learned


@pytest.fixture(scope="module")
def plainly(learn, model):
    return learn(model)


@pytest.fixture(scope="module")
def small_plainly(learn, small):
    return learn(small)


def assert_same(found, expected, tolerance=2e-5):
    for name, value in expected[0].items():
        np.testing.assert_allclose(
            found[0][name], value, rtol=tolerance, atol=tolerance, err_msg=name
        )
    np.testing.assert_allclose(found[1], expected[1], rtol=tolerance)


@pytest.mark.parametrize("count", [3, 16])
def test_micro_batches_learn_what_the_batch_does(learn, small, small_plainly, count):
    found = learn(small, micro_batches=count)
    assert_same(found, small_plainly)
    for (logits, valid, _), (expected, also_valid, _) in zip(
        found[2], small_plainly[2], strict=True
    ):
        np.testing.assert_array_equal(valid, also_valid)
        np.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.mark.parametrize("system", ["small", pytest.param("model", marks=pytest.mark.long)])
def test_xla_learns_the_same(request, learn, system):
    model = request.getfixturevalue(system)
    found, plainly = learn(model, xla="on"), learn(model)
    assert_same(found, plainly, 1e-4)
    for (logits, valid, _), (expected, also_valid, _) in zip(found[2], plainly[2], strict=True):
        np.testing.assert_array_equal(valid, also_valid)
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_compiled_tower_sees_few_shapes(plain_spec, settings, files):
    whole = next(iter(batches_of_file(files[0], plain_spec, settings, "click", None, fixed=True)))
    seen = set()
    for length in range(1, 26):
        for count in range(1, 6):
            batch = {
                name: value[:, :length]
                if name.startswith("history") and value.shape.rank > 1
                else tf.repeat(value[:, :1], count, 1)
                if value.shape.rank > 1
                else value
                for name, value in whole.items()
            }
            padded = in_buckets(plain_spec, batch)
            seen.add((padded["history_item_id"].shape[1], padded["label"].shape[1]))
            shape = padded["history_item_id"].shape[1]
            assert length <= shape <= 25
            assert padded["label"].shape == padded["candidate_item_id"].shape
            np.testing.assert_array_equal(
                padded["history_item_id"][:, :length], batch["history_item_id"]
            )
    assert {each[0] for each in seen} == {7, 14, 21, 25} and {each[1] for each in seen} == {
        1,
        2,
        4,
        8,
    }


def test_a_trainer_on_a_cpu_compiles_nothing_by_itself(plain_spec, model_settings):
    trainer = Trainer(plain_spec, model_settings, TrainingSettings(), RowLookup())
    assert trainer.step.tower is trainer.tower and trainer.step._compiled is None


def test_bfloat16_computes_coarsely_and_keeps_float32(learn, model, plainly):
    found = learn(model, precision="bfloat16")
    assert {each.dtype for each in found[0].values()} == {np.dtype(np.float32)}
    assert all(logits.dtype == tf.float32 for logits, *_ in found[2])
    assert found[1] != plainly[1]
    np.testing.assert_allclose(found[1], plainly[1], rtol=0.02)
    moved = {name: np.abs(value - plainly[0][name]).max() for name, value in found[0].items()}
    assert 0 < moved["dense"] < 0.01
    # The masters move by less than a step of bfloat16 can tell.
    dense = found[0]["dense"]
    assert (tf.cast(tf.cast(dense, tf.bfloat16), tf.float32).numpy() != dense).mean() > 0.9


DEVICES = """
import json, sys
import numpy as np, tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from laser_features import FeatureSpec
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.section import check
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.example_files import batches_of_file
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer
spec, model, settings, path, output = sys.argv[1:]
spec = FeatureSpec.from_dict(json.loads(spec))
settings = check(TrainingSettings, json.loads(settings), "training")
model = check(ModelSettings, json.loads(model), "model")
trainer = Trainer(spec, model, settings, RowLookup())
step = tf.function(trainer.step.train, autograph=False)
batches = list(batches_of_file(path, spec, settings, "click", None))
anything = {
    name: tf.TensorSpec([None] * value.shape.rank, value.dtype)
    for name, value in batches[0].items()
}
graph = step.get_concrete_function(anything)
losses = [float(step(batch)[2]) for batch in batches]
assert step.experimental_get_tracing_count() == 1
used = {op.device for op in graph.graph.get_operations() if op.device}
np.savez(output, losses=losses, used=sorted(used), **trainer.numpy_state())
"""


@pytest.mark.long
def test_two_devices_learn_what_one_does(
    small_plainly, plain_spec, small, settings, files, tmp_path
):
    output = str(tmp_path / "two.npz")
    two = replace(settings, table_l2=0.01, clip_norm=1.0, devices=2, micro_batches=2)
    parts = (plain_spec.to_dict(), plain(small), plain(two))
    texts = [json.dumps(each) for each in parts]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", DEVICES, *texts, files[0], output]
    subprocess.run(command, check=True, env=environment, timeout=200)
    found = dict(np.load(output))
    assert {each.rpartition("/")[2] for each in found.pop("used")} >= {
        "device:CPU:0",
        "device:CPU:1",
    }
    assert_same((found, found.pop("losses")), small_plainly)


def test_devices_that_are_not_there_are_named():
    gpus = ["/device:GPU:0", "/device:GPU:1", "/device:GPU:2"]
    assert devices_of(TrainingSettings(devices=2), gpus) == gpus[:2]
    assert (
        devices_of(TrainingSettings(devices=0), gpus[:1])
        == devices_of(TrainingSettings(), gpus)
        == []
    )
    host = ["/device:CPU:0", *gpus]
    assert gpus_of_a_worker(host) == gpus and gpus_of_a_worker(host[:1]) == []
    workers = [
        f"/job:{job}/replica:0/task:{task}/device:{device}"
        for job, task, device in (
            ("chief", 0, "GPU:0"),
            ("ps", 0, "CPU:0"),
            ("worker", 0, "GPU:0"),
            ("worker", 0, "GPU:1"),
            ("worker", 1, "GPU:0"),
        )
    ]
    assert gpus_of_a_worker(workers) == gpus[:1]
    assert gpus_of_a_worker([*workers, "/job:worker/replica:0/task:2/device:CPU:0"]) == []
    with pytest.raises(SettingsError, match=r"devices is 4, and TensorFlow sees 3 \(/device:GPU:0"):
        devices_of(TrainingSettings(devices=4), gpus)
    with pytest.raises(SettingsError, match="batch of 4 requests has no 6 parts"):
        check(TrainingSettings, {"batch_size": 4, "micro_batches": 3, "devices": 2}, "training")
