"""The SavedModel: the user tower and the index of all items' vectors."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf
import tensorflow_recommenders as tfrs

from laser_features import FeatureSpec, ModelInput
from tfx_pipeline.recall.clicks import LENGTH
from tfx_pipeline.recall.keras2.two_towers import TwoTowers
from tfx_pipeline.recall.recall_spec import user_inputs
from tfx_pipeline.training.row_lookup import RowLookup


class RecallIndex(tf.Module):
    """Answers a user's history with the items of the highest scores.

    Args:
        spec: What ``recall_spec`` left of the feature spec.
        towers: The trained towers.
        lookup: Turns raw inputs into rows.
        item_ids: int64 [items].
        item_vectors: float32 [items, width], of the item tower.
        k: Items to answer with, at most as many as there are.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        towers: TwoTowers,
        lookup: RowLookup,
        item_ids: tf.Tensor,
        item_vectors: tf.Tensor,
        k: int,
    ) -> None:
        super().__init__(name="laser_recall")
        self._spec, self._lookup, self._users = spec, lookup, towers.users
        index = tfrs.layers.factorized_top_k.BruteForce(k=k).index(item_vectors, item_ids)
        # Variables alone are tracked, no Keras objects: the SavedModel must not depend on them.
        self._best = lambda users: index(users)
        self.weights = [*towers.trainable_variables, *index.weights]

    @tf.autograph.experimental.do_not_convert
    def recall(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """``item_id`` int64 [B, k] and ``score`` float32 [B, k], the highest first.

        Args:
            inputs: The arrays of ``user_inputs`` and ``history_length``, as
                ``laser_features.build_model_inputs`` makes them; histories may be longer than what
                the model reads.
        """
        longest = self._spec.max_history
        rows = {}
        for each in user_inputs(self._spec):
            value = inputs[each.name]
            rows[each.name] = self._lookup.rows(
                each, value[:, :longest] if each.kind == "history" else value
            )
        score, item_id = self._best(self._users({**rows, LENGTH: inputs[LENGTH]}))
        return {"item_id": item_id, "score": score}

    def save(self, directory: str) -> None:
        """Write the SavedModel with the signature ``serving_default``."""
        inputs = {
            each.name: tf.TensorSpec(_shape(each), each.dtype, name=each.name)
            for each in user_inputs(self._spec)
        }
        inputs[LENGTH] = tf.TensorSpec([None], tf.int32, name=LENGTH)
        function = tf.function(lambda **tensors: self.recall(tensors), autograph=False)
        signature = function.get_concrete_function(**inputs)
        tf.saved_model.save(self, directory, signatures={"serving_default": signature})


def _shape(model_input: ModelInput) -> list[int | None]:
    if model_input.kind == "request":
        return [None]
    return [None, None, *([] if model_input.values is None else [model_input.values])]
