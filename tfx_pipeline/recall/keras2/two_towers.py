"""The two towers: a user's and an item's vector, whose dot product is the score."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras as keras  # noqa: TID251 - tensorflow-recommenders needs Keras 2
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.recall.clicks import LENGTH
from tfx_pipeline.recall.keras2.field_embeddings import FieldEmbeddings
from tfx_pipeline.recall.recall_spec import ITEM, item_inputs, user_inputs

_HIDDEN = 2
"""Hidden width of a tower per number of its output."""
# The task asks a tensor for its length, which only AutoGraph answers.
_in_batch_softmax = tf.autograph.to_graph(tfrs.tasks.Retrieval.call, recursive=False)


class TwoTowers(tfrs.Model):
    """Learns from clicks alone: each click's item against the items of the batch's other clicks.

    Often clicked items are negatives more often; the loss takes the logarithm of their share of
    the clicks from their scores while training, so that they do not pay for it.

    Args:
        spec: What ``recall_spec`` left of the feature spec.
        width: Numbers in a vector.
        clicks: Clicks of the training split per row of the item table.
    """

    def __init__(self, spec: FeatureSpec, width: int, clicks: NDArray) -> None:
        super().__init__(name="recall")
        user, item = user_inputs(spec), item_inputs(spec)
        events = [each for each in user if each.kind == "history"]
        request = [each for each in user if each.kind == "request"]
        # Keras would wrap lists of them, and a SavedModel could not hold these.
        self._inputs_of = {"events": events, "request": request, "item": item}.__getitem__
        self._shares = (clicks / max(clicks.sum(), 1)).astype("float32")
        self.tables = FieldEmbeddings(spec, [*user, *item])
        self._user_net = _network("user", width)
        self._item_net = _network("item", width)
        self._task = tfrs.tasks.Retrieval(remove_accidental_hits=True)
        self._click_loss = keras.metrics.Mean(name="click_loss")

    def users(self, rows: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Vectors [B, width]: the mean of the events' embeddings and the request's fields."""
        events = self.tables(rows, self._inputs_of("events"))
        places = tf.range(tf.shape(events)[1])
        valid = tf.cast(places < rows[LENGTH][:, None], events.dtype)[..., None]
        count = tf.maximum(tf.reduce_sum(valid, axis=1), 1.0)
        parts = [tf.reduce_sum(events * valid, axis=1) / count]
        if request := self._inputs_of("request"):
            parts.append(self.tables(rows, request))
        return self._user_net(tf.concat(parts, axis=-1))

    def items(self, rows: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Vectors [items, width]."""
        return self._item_net(self.tables(rows, self._inputs_of("item")))

    # AutoGraph would rewrite all of Keras that a step reaches, which takes half a minute.
    @tf.autograph.experimental.do_not_convert
    def train_step(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of the optimizer on a batch of clicks; answers ``click_loss``."""
        return dict(super().train_step(inputs))

    def compute_loss(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The sum over a batch's clicks; ``click_loss`` is the mean over those of an epoch."""
        loss = _in_batch_softmax(
            self._task,
            self.users(features),
            self.items(features),
            candidate_sampling_probability=tf.gather(self._shares, features[ITEM]),
            candidate_ids=features[ITEM],
            compute_metrics=False,
        )
        clicks = tf.cast(tf.shape(features[ITEM])[0], loss.dtype)
        self._click_loss.update_state(loss / clicks, sample_weight=clicks)
        return loss


def _network(name: str, width: int) -> keras.Sequential:
    layers = [
        keras.layers.Dense(_HIDDEN * width, activation="relu"),
        keras.layers.Dense(width),
    ]
    return keras.Sequential(layers, name=f"{name}_tower")
