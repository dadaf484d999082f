"""Everything that training changes: tables, dense weights, the step count."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.dense_weights import DenseWeights
from tfx_pipeline.training.embedding_tables import EmbeddingTable


class TrainingState(tf.Module):
    """The variables of a run. Create it inside the strategy's scope, if there is a strategy.

    Args:
        spec: Names and sizes of the tables.
        settings: Seed and initial values.
        model: The tower; its weights are copied, afterwards it is only a pure function.
    """

    def __init__(self, spec: FeatureSpec, settings: TrainingSettings, model: keras.Model) -> None:
        super().__init__(name="state")
        self.tables: Mapping[str, EmbeddingTable] = {
            name: EmbeddingTable(
                name,
                table.rows,
                table.width,
                seed=settings.seed,
                init_scale=settings.table_init_scale,
                initial_accumulator=settings.table_initial_accumulator,
            )
            for name, table in spec.tables.items()
        }
        self.dense = DenseWeights(initial_weights(model))
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")


def initial_weights(model: keras.Model) -> list[NDArray]:
    """Trainable weights of a tower.

    Raises:
        ValueError: The tower keeps state that training would have to carry (batch normalisation).
    """
    carried = [v.path for v in model.non_trainable_variables if not is_seed(v)]
    if carried:
        raise ValueError(
            f"the tower holds the non-trainable variables {carried}; use layers without running "
            "statistics, such as LayerNormalization"
        )
    return [np.asarray(keras.ops.convert_to_numpy(v)) for v in model.trainable_variables]


def is_seed(variable: keras.Variable) -> bool:
    """Whether a variable is the state of a Keras seed generator (dropout has one each)."""
    return "seed" in variable.path and tuple(variable.shape) == (2,)
