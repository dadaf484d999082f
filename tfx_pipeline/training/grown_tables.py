"""Tables that get more rows than they had in the training with which another one begins.

Row 0 and those that had a meaning before keep it, and what they learned; the further ones begin
like any other row. A checkpoint holds a table under one name, however many servers wrote it, so
each shard of the larger table reads the part of the rows that lies in it, on its own server.
"""

from __future__ import annotations

from collections.abc import Collection

import tensorflow as tf

from laser_features import FeatureSpec
from tfx_pipeline.training.embedding_tables import shards_of
from tfx_pipeline.training.training_state import TrainingState

_MAP = ("ids", "rows", "seen", "sketch", "waiting")


def tables_that_may_grow(spec: FeatureSpec) -> list[str]:
    """Names of the tables whose rows keep their meaning when there are more of them.

    A hashed id's row is a remainder by the number of rows, so it is another one then.
    """
    return [name for name, table in spec.tables.items() if table.ids != "hash"]


def grown_tables(path: str, state: TrainingState, may_grow: Collection[str]) -> dict[str, int]:
    """The tables that have more rows than in a checkpoint, with the rows that they have there.

    Args:
        path: Of the checkpoint.
        state: Holds the tables.
        may_grow: Names of those that are looked at.
    """
    shapes = tf.train.load_checkpoint(path).get_variable_to_shape_map() if may_grow else {}
    grown = {}
    for name in may_grow:
        table = state.tables[name]
        rows, *width = shapes.get(_key("tables", name, "values")) or [table.rows, table.width]
        if rows < table.rows and width == [table.width]:
            grown[name] = int(rows)
    return grown


def read_grown_table(path: str, state: TrainingState, name: str, rows: int) -> None:
    """Read a table of a checkpoint into one that has more rows, and its map of ids if it is open.

    Args:
        path: Of the checkpoint.
        state: Holds the larger table, whose further rows keep their values.
        name: Of the table.
        rows: Rows that it has in the checkpoint.

    Raises:
        ValueError: The state's table is open and the checkpoint's is not.
        tf.errors.OpError: The checkpoint is damaged.
    """
    table = state.tables[name]
    for part, variable in (("values", table.values), ("accumulators", table.accumulators)):
        _read_first_rows(path, _key("tables", name, part), variable, rows)
    if name in state.open_rows:
        reader = tf.train.load_checkpoint(path)
        keys = {part: _key("open_rows", name, part) for part in _MAP}
        if not all(map(reader.has_tensor, keys.values())):
            raise ValueError(f"table {name!r} is not open there")
        held = {part: reader.get_tensor(key) for part, key in keys.items()}
        state.open_rows[name].extend(**held)


def _read_first_rows(path: str, key: str, variable: tf.Variable, rows: int) -> None:
    first = 0
    for shard in shards_of(variable):
        count, width = shard.shape
        kept = min(count, rows - first)
        if kept > 0:
            on_its_cpu = tf.DeviceSpec.from_string(shard.device).replace(
                device_type="CPU", device_index=0
            )
            with tf.device(on_its_cpu.to_string()):
                (read,) = tf.raw_ops.RestoreV2(
                    prefix=path,
                    tensor_names=[key],
                    shape_and_slices=[f"{rows} {width} {first},{kept}:-"],
                    dtypes=[shard.dtype],
                )
            with tf.device(shard.device):
                tf.raw_ops.ResourceStridedSliceAssign(
                    ref=shard.handle, begin=[0], end=[kept], strides=[1], value=read
                )
        first += count


def _key(*path: str) -> str:
    """What a checkpoint of ``Checkpoints`` calls a variable of the state."""
    escaped = [name.replace(".", "..").replace("/", ".S") for name in ("state", *path)]
    return f"{'/'.join(escaped)}/.ATTRIBUTES/VARIABLE_VALUE"
