"""The SavedModel: tables, weights and the row lookup, without any of our code."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from laser_features import FeatureSpec
from tfx_pipeline.training.parsing import CANDIDATE_COUNT, parse_examples, without_padding
from tfx_pipeline.training.ranking_step import dropout_seeds
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.tower import CONTENT, tower_inputs
from tfx_pipeline.training.training_state import TrainingState


class ServingModel(tf.Module):
    """Answers rank requests: raw model inputs in, probabilities out.

    Holds the embedding tables and the dense weights as plain variables, so it can only be made in
    one process: restore a cluster's checkpoint into a state made without a strategy first.

    Args:
        spec: The feature spec.
        model: The tower, used as a pure function.
        lookup: Turns raw inputs into rows.
        state: The variables.
        content: Frozen content vectors, if the spec has any.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        model: keras.Model,
        lookup: RowLookup,
        state: TrainingState,
        content: tf.Variable | None,
    ) -> None:
        super().__init__(name="laser_ranker")
        self._spec, self._lookup = spec, lookup
        # Keras objects are not tracked: the SavedModel must not depend on them.
        self._tower = tf.autograph.experimental.do_not_convert(
            lambda weights, inputs: model.stateless_call(
                weights, dropout_seeds(model, 0, None), inputs, training=False
            )[0]
        )
        self.tables = {name: table.values for name, table in state.tables.items()}
        if content is not None:
            self.tables[CONTENT] = content
        self.weights = [
            tf.Variable(weight, trainable=False)
            for weight in state.dense.unflatten(state.dense.read())
        ]

    def rank(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """``probability`` float32 [B, N] of the arrays of ``spec.model_inputs()``."""
        rows = self._lookup.table_rows(self._spec, without_padding(self._spec, inputs))

        def embed(table: str, name: str) -> tf.Tensor:
            return tf.gather(self.tables[table], rows[name])

        embedded = tower_inputs(self._spec, rows, embed)
        logits = self._tower([tf.convert_to_tensor(w) for w in self.weights], embedded)
        return {"probability": tf.sigmoid(logits)}

    def rank_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """``probability`` float32 [B, N] of serialized Examples [B], N the most candidates."""
        batch = parse_examples(examples, self._spec)
        del batch[CANDIDATE_COUNT]
        return self.rank(batch)

    def save(self, directory: str) -> None:
        """Write the SavedModel with the signatures ``serving_default`` and ``serving_examples``."""
        inputs = {
            each.name: tf.TensorSpec(
                [None] if each.kind == "request" else [None, None], each.dtype, name=each.name
            )
            for each in self._spec.model_inputs()
        }
        examples = tf.TensorSpec([None], tf.string, name="examples")
        by_tensors = tf.function(lambda **tensors: self.rank(tensors))
        by_examples = tf.function(self.rank_examples)
        signatures = {
            "serving_default": by_tensors.get_concrete_function(**inputs),
            "serving_examples": by_examples.get_concrete_function(examples),
        }
        tf.saved_model.save(self, directory, signatures=signatures)


def as_variable(content: np.ndarray | None) -> tf.Variable | None:
    """Frozen content vectors as a variable, inside the strategy's scope if there is one."""
    if content is None:
        return None
    return tf.Variable(content, trainable=False, name=CONTENT)
