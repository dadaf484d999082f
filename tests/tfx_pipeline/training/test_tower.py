"""The tower's inputs, and the ranker that is built for them."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from laser_features import FeatureSpec
from tfx_pipeline.config import CONFIGS
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.pipeline_settings import PipelineSettings
from tfx_pipeline.settings.read_yaml import read_yaml
from tfx_pipeline.settings.section import check
from tfx_pipeline.training.content_vectors import CONTENT
from tfx_pipeline.training.tower import Tower
from tfx_pipeline.training.tower_inputs import tower_inputs, tower_widths

SPEC = FeatureSpec.from_dict(
    {
        "name": "tiny",
        "history": {"max_length": 3},
        "tables": {
            "item": {"rows": 10, "width": 2, "ids": "direct"},
            "action": {"rows": 4, "width": 1, "ids": "direct"},
            "author": {"rows": 10, "width": 3, "ids": "direct"},
            "position": {"rows": 4, "width": 1, "ids": "direct"},
        },
        "event": {
            "action": {"type": "int8", "table": "action"},
            "item_id": {"type": "int64", "table": "item"},
        },
        "item": {
            "author_id": {"type": "int64", "table": "author"},
            "image": {"type": "float32", "shape": [2]},
        },
        "candidate": {"position": {"type": "int8", "table": "position"}},
        "label": {"click": {"type": "int8"}},
    }
)


def inputs_for(item: int, author: int) -> dict[str, tf.Tensor]:
    """One request: the same item in the history and as the candidate."""
    widths = {"item": 2, "action": 1, "author": 3, "position": 1, CONTENT: 2}
    rows = {
        "history_item_id": [[item]],
        "history_action": [[3]],
        "history_author_id": [[author]],
        "candidate_item_id": [[item]],
        "candidate_author_id": [[author]],
        "candidate_position": [[1]],
        "history_age_seconds": [[60]],
        "history_length": [1],
    }
    rows = {name: tf.constant(value) for name, value in rows.items()}
    offsets = {name: 100 * place for place, name in enumerate(widths)}

    def embed(table: str, name: str) -> tf.Tensor:
        values = tf.cast(rows[name], tf.float32)[..., None] + offsets[table]
        return tf.repeat(values, widths[table], axis=-1)

    return tower_inputs(SPEC, rows, embed)


def test_the_targets_features_lead_the_historys_columns() -> None:
    inputs = inputs_for(5, 7)
    shared = tower_widths(SPEC)["target"]
    history, target = inputs["history"][0, 0].numpy(), inputs["target"][0, 0].numpy()
    assert target.tolist() == [5, 5, 207, 207, 207, 405, 405]
    np.testing.assert_array_equal(history[:shared], target)
    assert history[shared:].tolist() == [103]  # the action, which a candidate has not got


def test_an_item_starts_as_the_same_token_on_both_sides() -> None:
    settings = ModelSettings(
        dim=8, mixer_dim=8, num_tokens=8, encoder={"num_recent_segments": 1, "segment_size": 1}
    )
    tokenizer = Tower(SPEC, settings, seed=3).model.tokenizer
    shared = tower_widths(SPEC)["target"]
    of_history = keras.ops.convert_to_numpy(tokenizer.history_kernel)
    of_target = keras.ops.convert_to_numpy(tokenizer.target_kernel)
    np.testing.assert_array_equal(of_history[:shared], of_target)


def test_the_papers_config_is_a_ranker_with_its_sizes_and_optimiser():
    config = read_yaml(CONFIGS / "paper.yaml")
    settings = check(PipelineSettings, config, "paper.yaml")
    assert (settings.training.beta_1, settings.training.beta_2) == (0.9, 0.9999)
    assert settings.training.batch_size == 2048
    spec = SPEC.to_dict()
    spec["tables"]["item"]["width"] = 64
    tower = Tower(FeatureSpec.from_dict(spec), settings.model, seed=0)
    attention = tower.model.encoder.segmented_attention
    assert (attention.num_heads, attention.key_dim, attention.segment_size) == (2, 16, 10)
    assert settings.model.dim == 128
