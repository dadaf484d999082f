"""A look inside a model: gates by position, silent segments, lengths of embeddings."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from laser_features import FeatureSpec
from tfx_pipeline.training.model_statistics import gates_by_segment
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer


def test_gates_are_counted_from_the_newest_event_and_padding_is_left_out():
    gates = np.full((2, 2, 2, 25), 9.0)  # what is no event or no candidate must not be seen
    gates[0, 0] = 0.0
    gates[0, 0, :, 15:25] = 0.25
    gates[0, 0, 1, 15:25] = 0.75
    gates[1, 0, :, :3] = 0.04
    means, real = gates_by_segment(
        gates, np.array([25, 3]), np.array([[True, False], [True, False]])
    )
    # The first history has segments of 10, 10 and 5 events, the second one of 3.
    newest = (10 * (0.25 + 0.75) + 2 * 3 * 0.04) / 26
    assert means["segment_0"] == pytest.approx(newest)
    assert means["segment_1"] == means["segment_2"] == 0.0
    assert means["silent_segments"] == 0.75
    assert real.shape == (2 * 25 + 2 * 3,)
    assert set(means) == {"segment_0", "segment_1", "segment_2", "silent_segments"}


def test_without_any_event_there_is_nothing_to_tell():
    assert gates_by_segment(np.zeros((1, 1, 1, 4)), np.array([0]), np.array([[True]]))[0] == {}


def test_a_training_logs_them_at_the_end_of_an_epoch(
    plain_spec, laser_settings, settings, write_files, tmp_path
):
    # Shorter than the encoder takes in a shape that it sees: it pads what is shorter in a graph.
    spec = FeatureSpec.from_dict({**plain_spec.to_dict(), "history": {"max_length": 5}})
    files = write_files(tmp_path, spec, files=1, requests=80)
    trainer = Trainer(spec, laser_settings, settings, RowLookup(), log_dir=str(tmp_path / "logs"))
    trainer.train(files)
    lines = [json.loads(line) for line in (tmp_path / "logs/metrics.jsonl").open()]
    (logged,) = [line for line in lines if line["split"] == "model"]
    used = trainer.numpy_state()["table_tag"][1:]
    norm = logged["embedding_norm_tag"]
    assert np.linalg.norm(used, axis=1).min() < norm < np.linalg.norm(used, axis=1).max()
    assert 0.0 <= logged["gate_silent_segments"] <= 1.0
    assert {name for name in logged if name.startswith("gate_seg")} == {"gate_segment_0"}
    assert "laser_training_model_gate_segment_0" in (tmp_path / "logs/metrics.prom").read_text()
    tags = {
        value.tag
        for file in (tmp_path / "logs").glob("*tfevents*")
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }
    assert {"model/gates", "model/embedding_norm/item", "model/gate_segment_0"} <= tags
