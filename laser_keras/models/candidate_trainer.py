"""How a model that scores the candidates of a request is trained by ``fit``."""

from typing import Any

import keras
from keras import ops

from laser_keras.models.ranker_inputs import weights_per_candidate
from laser_keras.types import Tensor


class CandidateTrainer(keras.Model):
    """Base of models whose output is [B, N], or [B, N, K] with K labels.

    Losses and metrics take one weight per candidate, logits of parts that learn the labels apart
    are added to the loss, and ``MirroredStrategy`` builds from one replica's share of a batch.

    Subclasses set ``num_outputs`` (K) and say which logits are trained as well.
    """

    num_outputs: int

    def auxiliary_logits(self, inputs: Any) -> list[Tensor]:
        """Logits [B, N] that are to learn the (first) label as well."""
        return []

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """The compiled loss, plus the cross entropy of the auxiliary logits."""
        loss = super().compute_loss(
            x, *weights_per_candidate(self.name, self.loss, y, y_pred, sample_weight), training
        )
        if not training or x is None or y is None:
            return loss
        entropy = keras.losses.BinaryCrossentropy(from_logits=True)
        y = y if self.num_outputs == 1 else y[..., 0]
        for logits in self.auxiliary_logits(x):
            # The last axis is averaged before weights apply: one label each.
            labels, logits = ops.expand_dims(y, -1), ops.expand_dims(logits, -1)
            loss = loss + entropy(labels, logits, sample_weight=sample_weight)
        return loss

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """The compiled metrics; those in ``weighted_metrics`` take weights per candidate too."""
        return super().compute_metrics(
            x, *weights_per_candidate(self.name, self.loss, y, y_pred, sample_weight)
        )

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras' TensorFlow trainer calls this under a distribution strategy, and would average the
        # batch over the replicas: an average of masks and ages is no longer of their dtypes, and
        # Booleans have none. One replica's share has the shapes and dtypes that the build needs.
        if iterator is not None and self._distribute_strategy is not None:
            shares = self.distribute_strategy.experimental_local_results
            for *_, batches in iterator:
                data_batch = keras.tree.map_structure(lambda v: shares(v)[0], next(batches))
                break
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
