"""The embedding tables that both towers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf
import tf_keras as keras  # noqa: TID251 - tensorflow-recommenders needs Keras 2

from laser_features import FeatureSpec, ModelInput


class FieldEmbeddings(keras.layers.Layer):
    """One table per table of the feature spec that some input uses.

    Args:
        spec: Says how many rows and how wide each table is.
        inputs: The inputs of both towers.
    """

    def __init__(self, spec: FeatureSpec, inputs: Sequence[ModelInput]) -> None:
        super().__init__(name="tables")
        self._tables = {
            name: keras.layers.Embedding(spec.tables[name].rows, spec.tables[name].width, name=name)
            for name in sorted({str(each.table) for each in inputs})
        }

    def call(self, rows: Mapping[str, tf.Tensor], inputs: Sequence[ModelInput]) -> tf.Tensor:
        """The inputs' vectors side by side: [..., sum of widths], zeros where a row is 0.

        A field that holds several values has the mean of those that are there.
        """
        vectors = []
        for each in inputs:
            embedded = self._tables[str(each.table)](rows[each.name])
            present = tf.cast(rows[each.name] > 0, embedded.dtype)[..., None]
            vector = embedded * present
            if each.values is not None:
                count = tf.maximum(tf.reduce_sum(present, axis=-2), 1.0)
                vector = tf.reduce_sum(vector, axis=-2) / count
            vectors.append(vector)
        return tf.concat(vectors, axis=-1)
