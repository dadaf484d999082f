"""Cross entropy between the labels of a request and the softmax of its scores."""

import keras
from keras import ops

from laser_keras.losses.list_loss import ListLoss
from laser_keras.sequence import lowest, maximum_of
from laser_keras.types import Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class ListwiseSoftmaxLoss(ListLoss):
    """``-sum_i y_i log softmax(s)_i`` over the candidates of a request, labels summing to one.

    Use it for requests with few positives among many candidates, where only the order matters.
    Where calibrated probabilities are needed use binary cross entropy.

    Adding a constant to all scores of a request changes nothing. The loss of a request without a
    positive label is zero. Scores trained with it are not calibrated.

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
    >>> loss = ListwiseSoftmaxLoss()
    >>> round(float(loss(np.array([[1, 0, -1]]), np.array([[0.0, 0.0, 9.0]], "float32"))), 4)
    0.6931

    Source: ListNet (Cao et al. 2007), with the probability of the top place alone.
    """

    def of_lists(self, labels: Tensor, logits: Tensor, valid: Tensor) -> Tensor:
        """Losses [B]."""
        total = ops.sum(labels, axis=-1, keepdims=True)
        shares = labels / ops.where(total > 0, total, 1.0)
        highest = maximum_of(ops.where(valid, logits, lowest(logits)), axis=-1)
        centred = ops.where(valid, logits - ops.expand_dims(highest, -1), 0.0)
        powers = ops.sum(ops.where(valid, ops.exp(centred), 0.0), axis=-1, keepdims=True)
        logs = centred - ops.log(ops.where(powers > 0, powers, 1.0))
        return -ops.sum(shares * logs, axis=-1)
