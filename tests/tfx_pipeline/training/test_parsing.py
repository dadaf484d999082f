"""What the trainer parses is, byte for byte, what ``build_model_inputs`` returned."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from components.seqvault_example_gen.join import serialize_examples
from laser_features import RequestBatch, build_model_inputs
from tfx_pipeline.training.example_files import shuffled_positions
from tfx_pipeline.training.parsing import parse_examples, without_padding

TIME = 1_700_000_000_000


class Histories(dict):
    def __init__(self, lengths, fields):
        super().__init__(fields)
        self.lengths = lengths


class ItemRows(dict):
    found = np.zeros(0, bool)


class Items:
    """Item i has tag 100 + i and lasts i seconds; items from 50 on are unknown."""

    def read_items(self, ids, fields=None):
        rows = ItemRows(tag=np.asarray(ids) + 100, duration_ms=np.asarray(ids, np.int32) * 1000)
        rows.found = np.asarray(ids) < 50
        return rows


@pytest.fixture(scope="module")
def batch(spec):
    rng = np.random.default_rng(0)
    lengths = np.array([3, 0, 25, 7])
    history = Histories(
        lengths,
        {
            "timestamp": TIME - 1 - np.sort(rng.integers(0, 10**9, (4, 30)), axis=1),
            "item_id": rng.integers(0, 60, (4, 30)),
            "scene": rng.integers(-1, 3, (4, 30)).astype(np.int8),
        },
    )
    requests = RequestBatch(
        user_id=np.arange(4),
        time_ms=np.full(4, TIME),
        candidate_item_id=rng.integers(0, 60, (4, 3)),
        candidate_count=np.array([1, 3, 2, 3], np.int32),
        fields={"scene": np.array([0, 1, -1, 2], np.int8)},
        candidate_fields={"position": rng.integers(0, 5, (4, 3)).astype(np.int8)},
    )
    inputs = build_model_inputs(spec, requests, history, Items())
    labels = {"click": [np.arange(count) % 2 for count in requests.candidate_count]}
    return inputs, serialize_examples(spec, requests, inputs, labels)


def test_parsed_arrays_are_the_built_ones_byte_for_byte(spec, batch):
    inputs, examples = batch
    parsed = parse_examples(tf.constant(examples), spec, "click")
    for name, expected in inputs.items():
        assert parsed[name].numpy().dtype == expected.dtype, name
        assert parsed[name].shape == expected.shape, name
        assert parsed[name].numpy().tobytes() == expected.tobytes(), name
    np.testing.assert_array_equal(parsed["candidate_count"], [1, 3, 2, 3])
    np.testing.assert_array_equal(parsed["label"], [[0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])


def test_histories_are_cut_to_the_longest_of_the_batch(spec, batch):
    _, examples = batch
    for chosen, longest in ((examples, 25), (examples[:2], 3), (examples[1:2], 1)):
        parsed = parse_examples(tf.constant(chosen), spec, "click")
        cut = without_padding(spec, parsed)
        assert set(cut) == set(parsed)
        histories = {each.name for each in spec.model_inputs() if each.kind == "history"}
        for name, value in parsed.items():
            expected = value[:, :longest] if name in histories else value
            np.testing.assert_array_equal(cut[name], expected)


def test_an_example_without_a_feature_is_refused(spec, batch):
    example = tf.train.Example.FromString(batch[1][0])
    del example.features.feature["context_scene"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="context_scene"):
        parse_examples(tf.constant([example.SerializeToString()]), spec)


def test_the_order_within_a_file_follows_from_its_seed_alone():
    expected = shuffled_positions(30, 10, 4)
    assert sorted(expected) == list(range(30)) and list(expected) != list(range(30))
    try:
        for of_the_process in (0, 1):
            tf.random.set_seed(of_the_process)
            assert list(shuffled_positions(30, 10, 4)) == list(expected)
    finally:
        tf.random.set_seed(None)
    assert list(shuffled_positions(30, 10, 5)) != list(expected)
    assert list(shuffled_positions(3, 10, None)) == [0, 1, 2]
    assert list(shuffled_positions(0, 10, 4)) == []
