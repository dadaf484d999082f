"""Logistic loss over the pairs of candidates of a request whose labels differ."""

import keras
from keras import ops

from laser_keras.losses.list_loss import ListLoss
from laser_keras.types import Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class PairwiseLogisticLoss(ListLoss):
    """The mean of ``log(1 + exp(s_j - s_i))`` over the pairs with label ``y_i > y_j``.

    Use it to optimise gAUC directly: it bounds one minus the AUC within a request. Where calibrated
    probabilities are needed use binary cross entropy.

    It needs ``N^2`` numbers per request. The loss of a request whose labels are all equal is zero.
    Scores trained with it are not calibrated.

    Args:
        from_logits: Boolean. Whether scores are logits (``activation="linear"`` of a ranker);
            probabilities are turned into logits. Defaults to True.
        **kwargs: Arguments of ``keras.losses.Loss``.

    Call arguments:
        y_true: Tensor [B, N] of labels of at least 0; a negative one marks a padded candidate.
        y_pred: Float tensor [B, N] of scores.
        sample_weight: Optional tensor [B], one weight per request.

    Returns:
        The mean over requests (or what ``reduction`` says).

    Raises:
        ValueError: for shapes that do not fit, and weights per candidate.

    Example:

    >>> import numpy as np
    >>> loss = PairwiseLogisticLoss()
    >>> round(float(loss(np.array([[1, 0, -1]]), np.array([[2.0, 0.0, 9.0]], "float32"))), 4)
    0.1269

    Source: RankNet (Burges et al. 2005).
    """

    def of_lists(self, labels: Tensor, logits: Tensor, valid: Tensor) -> Tensor:
        """Losses [B]."""
        better = ops.expand_dims(labels, 2) > ops.expand_dims(labels, 1)
        both = ops.logical_and(ops.expand_dims(valid, 2), ops.expand_dims(valid, 1))
        pairs = ops.cast(ops.logical_and(better, both), logits.dtype)
        losses = ops.softplus(ops.expand_dims(logits, 1) - ops.expand_dims(logits, 2))
        count = ops.sum(pairs, axis=(1, 2))
        return ops.sum(pairs * losses, axis=(1, 2)) / ops.maximum(count, 1.0)
