"""The training state: tables, dense weights, moving averages and step count."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.carried_state import CarriedState
from tfx_pipeline.training.dense_weights import DenseWeights
from tfx_pipeline.training.embedding_tables import EmbeddingTable
from tfx_pipeline.training.open_rows import OpenRows
from tfx_pipeline.training.row_lookup import more_rows
from tfx_pipeline.training.tower import Tower


class TrainingState(tf.Module):
    """The variables of a run. Create it inside the strategy's scope, if there is a strategy.

    Args:
        spec: Names and sizes of the tables.
        settings: Seed and initial values.
        tower: Its weights are copied, afterwards it is only a pure function.
    """

    def __init__(self, spec: FeatureSpec, settings: TrainingSettings, tower: Tower) -> None:
        super().__init__(name="state")
        self.tables: Mapping[str, EmbeddingTable] = {
            name: EmbeddingTable(
                name,
                table.rows,
                table.width,
                seed=settings.seed,
                init_scale=settings.table_init_scale,
                initial_accumulator=settings.table_initial_accumulator,
                transmission=settings.transmission,
            )
            for name, table in spec.tables.items()
        }
        self.open_rows: Mapping[str, OpenRows] = {
            name: OpenRows(name, spec.tables[name].rows, each)
            for name, each in settings.open_tables.items()
        }
        self.dense = DenseWeights(to_numpy(tower.model.trainable_variables))
        self.carried = CarriedState(to_numpy(tower.carried_variables))
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")

    def without(self, tables: Collection[str]) -> dict[str, Any]:
        """All but these tables and their maps, under the names that checkpoints have for them."""
        return {
            "tables": {name: each for name, each in self.tables.items() if name not in tables},
            "open_rows": {
                name: each for name, each in self.open_rows.items() if name not in tables
            },
            "dense": self.dense,
            "carried": self.carried,
            "step": self.step,
        }

    def refresh_open_tables(self) -> list[str]:
        """Admit and evict ids of the open tables; a line about each table that changed.

        No step may be running.
        """
        lines = []
        for name, open_rows in self.open_rows.items():
            done = open_rows.refresh()
            self.tables[name].reset(done.evicted)
            if done.admitted or len(done.evicted) or done.refused:
                lines.append(
                    f"table {name}: {done.admitted:,} ids got rows, {len(done.evicted):,} lost them"
                    + (
                        f", for {done.refused:,} there was no room: {more_rows(name)}"
                        if done.refused
                        else ""
                    )
                )
        return lines


def to_numpy(variables: Sequence[keras.Variable]) -> list[NDArray]:
    """The values of Keras variables."""
    return [np.asarray(keras.ops.convert_to_numpy(variable)) for variable in variables]
