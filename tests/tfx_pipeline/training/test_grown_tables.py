"""A training whose tables have more rows than those of the training that it begins with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute.sharded_variable import ShardedVariable

from laser_features import FeatureSpec
from tfx_pipeline.settings.training_settings import OpenTableSettings
from tfx_pipeline.training.checkpoint import Checkpoints, Position
from tfx_pipeline.training.embedding_tables import shards_of
from tfx_pipeline.training.grown_tables import tables_that_may_grow
from tfx_pipeline.training.open_rows import OpenRows
from tfx_pipeline.training.tower import Tower
from tfx_pipeline.training.training_state import TrainingState

MAP = ("ids", "rows", "seen", "sketch", "waiting")


def in_shards(count):
    """A creator of variables that splits as a cluster's partitioner does."""

    def create(next_creator, **arguments):
        shape, dtype = arguments.get("shape"), arguments.get("dtype")
        if not shape or dtype != tf.float32:
            return next_creator(**arguments)
        sizes = [len(part) for part in np.array_split(np.arange(shape[0]), count)]
        parts, first = [], 0
        for size in sizes:
            part, offset = [size, *shape[1:]], [first, *[0] * (len(shape) - 1)]
            values = arguments["initial_value"](part, offset)
            parts.append(next_creator(**{**arguments, "initial_value": values, "shape": part}))
            first += size
        return ShardedVariable(parts)

    return create


@pytest.fixture(scope="module")
def make_state(open_spec, model_settings, settings):
    """A state by the rows of its tables, in one piece or in shards."""
    opened = replace(settings, open_tables={"tag": OpenTableSettings(sightings=2)})
    tower = Tower(open_spec, model_settings, settings.seed)

    def make(shards=1, **rows):
        content = open_spec.to_dict()
        for name, count in rows.items():
            content["tables"][name]["rows"] = count
        with tf.variable_creator_scope(in_shards(shards) if shards > 1 else _plain):
            return TrainingState(FeatureSpec.from_dict(content), opened, tower)

    return make


def _plain(next_creator, **arguments):
    return next_creator(**arguments)


def fill(state, seed):
    """Values that no initialiser gives, and some ids of the open table."""
    rng = np.random.default_rng(seed)
    for variable in state.variables:
        if variable.dtype.is_floating:
            variable.assign(rng.uniform(1, 2, variable.shape))
    state.step.assign(77)
    for ids in ([100, 200, 300], [100, 200, 400], [2**40, 400, 500]):
        met(state.open_rows["tag"], ids)
    assert state.open_rows["tag"].refresh().admitted == 3
    met(state.open_rows["tag"], [500, 600])  # 500 waits, 600 needs another sighting


def met(open_rows, ids):
    ids = tf.constant(ids, tf.int64)
    open_rows.note(ids, open_rows.lookup(ids), tf.constant(3))


def whole(variable):
    return np.concatenate([shard.numpy() for shard in shards_of(variable)])


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (3, 2), (2, 1)])
def test_known_rows_go_on_and_further_ones_are_those_of_a_table_of_this_size(
    make_state, open_spec, tmp_path, before, after
):
    smaller = make_state(before)
    fill(smaller, before)
    Checkpoints(str(tmp_path), smaller).save(Position(2, 5))
    larger, of_this_size = make_state(after, item=9000, tag=30), make_state(1, item=9000, tag=30)
    said = []
    checkpoints = Checkpoints(str(tmp_path), larger, report=said.append)
    assert checkpoints.restore(tables_that_may_grow(open_spec)) == Position(2, 5)
    assert said == [
        "table 'item' grows from 120 rows to 9,000",
        "table 'tag' grows from 12 rows to 30",
    ]
    for name, old in open_spec.tables.items():
        for part in ("values", "accumulators"):
            held = whole(getattr(smaller.tables[name], part))
            expected = whole(getattr(of_this_size.tables[name], part))
            expected[: old.rows] = held
            found = whole(getattr(larger.tables[name], part))
            assert found.tobytes() == expected.tobytes(), (name, part)
    for part in ("values", "first_moments", "second_moments"):
        held, found = (whole(getattr(each.dense, part)) for each in (smaller, larger))
        assert held.tobytes() == found.tobytes()
    assert larger.carried.values.numpy().tobytes() == smaller.carried.values.numpy().tobytes()
    assert int(larger.step) == 77


def test_an_open_table_keeps_its_ids_and_gives_the_further_rows_to_others(make_state, tmp_path):
    smaller = make_state(tag=4)
    fill(smaller, 0)
    known = smaller.open_rows["tag"].mapping()
    assert len(known[0]) == 3  # there is no room for another one
    Checkpoints(str(tmp_path), smaller).save(Position(1))
    larger = make_state(2, tag=9)
    Checkpoints(str(tmp_path), larger, report=lambda line: None).restore(["tag"])
    open_rows = larger.open_rows["tag"]
    np.testing.assert_array_equal(open_rows.mapping(), known)
    met(open_rows, [600, 700])  # the second sighting of one, the first of the other
    assert open_rows.refresh().refused == 0
    ids, rows = open_rows.mapping()
    assert set(ids.tolist()) == {*known[0].tolist(), 500, 600}
    assert len(set(rows.tolist())) == 5 and rows.max() <= 8 and rows.min() >= 1
    kept = dict(zip(*known, strict=True))
    assert {each: rows[list(ids).index(each)] for each in kept} == kept
    assert sorted(open_rows.rows.numpy().tolist()) == list(range(1, 9))


def test_a_larger_sketch_counts_no_id_lower_and_ids_wait_where_they_would_be_put():
    ids = np.random.default_rng(1).integers(-(2**62), 2**62, 800)
    smaller, larger, of_this_size = (
        OpenRows("t", rows, OpenTableSettings(sightings=3)) for rows in (300, 3000, 3000)
    )
    for _ in range(3):
        met(smaller, ids)
    wait = smaller.waiting.numpy()
    larger.extend(**{name: getattr(smaller, name).numpy() for name in MAP})
    assert larger.sketch.shape[0] == 8 * smaller.sketch.shape[0]
    counts, before = (
        each.sketch.numpy()[each._sketch_cells(tf.constant(ids)).numpy()].min(axis=1)
        for each in (larger, smaller)
    )
    assert (counts == before).all() and (counts >= 3).all()
    for _ in range(3):
        met(of_this_size, wait[wait > np.iinfo(np.int64).min])
    np.testing.assert_array_equal(larger.waiting, of_this_size.waiting)


def test_other_rows_are_refused_where_none_may_grow_or_there_are_fewer(make_state, tmp_path):
    smaller = make_state()
    path = Checkpoints(str(tmp_path), smaller).save(Position(1))
    for shards in (1, 2):
        for rows, may_grow in ((130, []), (130, ["tag"]), (110, ["item"])):
            other = Checkpoints(str(tmp_path), make_state(shards, item=rows))
            with pytest.raises(ValueError, match=f"checkpoint {path} is of another model .*120"):
                other.restore(may_grow)
            assert not other.damaged


def test_a_map_that_a_checkpoint_has_not_is_no_map(make_state, open_spec, settings, tmp_path):
    state = make_state()
    state.open_rows = {}
    Checkpoints(str(tmp_path), state).save(Position(1))
    for rows in (12, 24):
        with pytest.raises(ValueError, match="is of another model"):
            Checkpoints(str(tmp_path), make_state(tag=rows)).restore(["tag"])


def test_what_is_read_as_ever_is_all_that_a_state_has(make_state):
    state = make_state()
    assert set(state.without([])) == {name for name in vars(state) if name[0] != "_"}
    assert "item" not in state.without(["item"])["tables"]


def test_hashed_tables_may_not_grow(spec, plain_spec):
    assert tables_that_may_grow(spec) == list(spec.tables)
    assert set(plain_spec.tables) - set(tables_that_may_grow(plain_spec)) == {"tag"}
