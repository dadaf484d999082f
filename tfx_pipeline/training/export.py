"""The SavedModel: tables, weights and the row lookup, without any of our code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from laser_features import FeatureSpec, ModelInput
from tfx_pipeline.training.calibration import Calibration
from tfx_pipeline.training.content_vectors import CONTENT
from tfx_pipeline.training.labels import Label
from tfx_pipeline.training.parsing import CANDIDATE_COUNT, parse_examples, without_padding
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.tower import Tower
from tfx_pipeline.training.training_state import TrainingState


class ServingModel(tf.Module):
    """Answers rank requests: raw model inputs in, probabilities out.

    Holds the embedding tables and the dense weights as plain variables, so it can only be made in
    one process: restore a cluster's checkpoint into a state made without a strategy first.

    Args:
        spec: The feature spec.
        tower: The ranker, a pure function of its weights.
        lookup: Turns raw inputs into rows.
        state: The variables.
        content: Frozen content vectors, if the spec has any.
        logit_offset: Added to the logits, see ``RankingStep``.
        calibration: Maps the first label's probabilities; None leaves them as they are.
        labels: Those of the tower's heads, in their order.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        tower: Tower,
        lookup: RowLookup,
        state: TrainingState,
        content: tf.Variable | None,
        logit_offset: float = 0.0,
        calibration: Calibration | None = None,
        labels: Sequence[Label] = (),
    ) -> None:
        super().__init__(name="laser_ranker")
        self._offset, self._calibration = logit_offset, calibration
        self._labels = tuple(labels)
        self._spec, self._lookup = spec, lookup
        self._tower = tower
        # Keras objects are not tracked: the SavedModel must not depend on them.
        self._heads = lambda weights, carried, inputs: tower(weights, carried, inputs).heads
        self.tables = {name: table.values for name, table in state.tables.items()}
        if content is not None:
            self.tables[CONTENT] = content
        self.weights = [
            tf.Variable(weight, trainable=False)
            for weight in state.dense.unflatten(state.dense.read())
        ]
        self.carried = [tf.Variable(value, trainable=False) for value in state.carried.read()]

    def rank(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """``probability`` float32 [B, N] of the arrays of ``spec.model_inputs()``.

        Further labels answer as ``probability_<label>``, or ``value_<label>`` of a regression.
        """
        inputs = without_padding(self._spec, inputs, self._tower.fixed_length)
        rows = self._within_tables(self._lookup.table_rows(self._spec, inputs))

        def embed(table: str, name: str) -> tf.Tensor:
            return tf.gather(self.tables[table], rows[name])

        weights, carried = (
            [tf.convert_to_tensor(each) for each in kept] for kept in (self.weights, self.carried)
        )
        first, *others = self._heads(weights, carried, self._tower.inputs(rows, embed))
        probability = tf.sigmoid(first + self._offset)
        if self._calibration is not None:
            probability = self._calibration.apply(probability)
        outputs = {"probability": probability}
        for label, head in zip(self._labels[1:], others, strict=True):
            outputs[label.output] = label.answer(head)
        return outputs

    def _within_tables(self, rows: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The rows, 0 where a direct table has none: a later feature spec may give it more."""
        direct = {
            each.name: self._spec.tables[each.table].rows
            for each in self._spec.model_inputs()
            if each.table is not None and self._spec.tables[each.table].ids == "direct"
        }
        return {
            name: tf.where(value < direct[name], value, 0) if name in direct else value
            for name, value in rows.items()
        }

    def rank_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """``probability`` float32 [B, N] of serialized Examples [B], N the most candidates."""
        batch = parse_examples(examples, self._spec)
        del batch[CANDIDATE_COUNT]
        return self.rank(batch)

    def save(self, directory: str) -> None:
        """Write the SavedModel with the signatures ``serving_default`` and ``serving_examples``."""
        inputs = {
            each.name: tf.TensorSpec(_shape(each), each.dtype, name=each.name)
            for each in self._spec.model_inputs()
        }
        examples = tf.TensorSpec([None], tf.string, name="examples")
        by_tensors = tf.function(lambda **tensors: self.rank(tensors), autograph=False)
        by_examples = tf.function(self.rank_examples, autograph=False)
        signatures = {
            "serving_default": by_tensors.get_concrete_function(**inputs),
            "serving_examples": by_examples.get_concrete_function(examples),
        }
        tf.saved_model.save(self, directory, signatures=signatures)


def _shape(model_input: ModelInput) -> list[int | None]:
    if model_input.kind == "request":
        return [None]
    return [None, None, *([] if model_input.values is None else [model_input.values])]


def as_variable(content: np.ndarray | None) -> tf.Variable | None:
    """Frozen content vectors as a variable, inside the strategy's scope if there is one."""
    if content is None:
        return None
    return tf.Variable(content, trainable=False, name=CONTENT)
