"""AUC within each request, averaged over requests."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_agrees, check_choice, check_rank
from laser_keras.types import Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class GroupAUC(keras.metrics.Metric):
    """gAUC: the probability that a positive candidate of a request outscores a negative one.

    Use it to judge a ranking within requests or users. Unlike the AUC over all candidates it does
    not reward a model for telling active users from inactive ones.

    The computation is exact; ties count one half. Each row is one group: put all impressions of a
    user into one row to group by user. Groups with one class are left out.

    Args:
        weighting: ``"impressions"`` weights a group by the (weighted) number of its candidates,
            ``"uniform"`` counts all groups alike. Defaults to ``"impressions"``.
        name: Name of the metric. Defaults to ``"gauc"``.
        **kwargs: Arguments of ``keras.metrics.Metric``.

    Call arguments:
        y_true: Tensor [B, N] of labels, positive where above one half; a negative one marks a
            padded candidate.
        y_pred: Float tensor [B, N] of scores, logits or probabilities.
        sample_weight: Optional tensor [B] or [B, N]. A pair counts the product of its candidates'
            weights.

    Returns:
        A scalar; 0 before any group with both classes was seen.

    Raises:
        ValueError: for arguments or shapes that do not fit.

    Example:

    >>> import numpy as np
    >>> metric = GroupAUC()
    >>> metric.update_state(np.array([[1, 0, -1], [1, 0, 0]]), np.array([[2, 2, 9], [3, 1, 2.0]]))
    >>> round(float(metric.result()), 4)  # (2 * 0.5 + 3 * 1.0) / 5
    0.8

    Source: DIN (arXiv 1706.06978), section 6.2.
    """

    def __init__(self, weighting: str = "impressions", name: str = "gauc", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.weighting = check_choice(name, "weighting", weighting, ("impressions", "uniform"))
        self.total = self.add_variable(shape=(), initializer="zeros", name="total")
        self.weight = self.add_variable(shape=(), initializer="zeros", name="weight")

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        """Add a batch of groups."""
        scores = _rows(ops.convert_to_tensor(y_pred))
        labels = _rows(ops.cast(ops.convert_to_tensor(y_true), self.dtype))
        check_rank(self.name, "y_pred", tuple(scores.shape), (2,), "[B, N]")
        check_agrees(self.name, "y_true", tuple(labels.shape), tuple(scores.shape), "[B, N]")
        weights = ops.ones(ops.shape(scores), dtype=self.dtype)
        if sample_weight is not None:
            given = ops.cast(ops.convert_to_tensor(sample_weight), self.dtype)
            given = ops.expand_dims(given, 1) if len(given.shape) == 1 else _rows(given)
            weights = weights * given
        of_positive = ops.where(labels > 0.5, weights, 0.0)
        of_negative = ops.where(ops.logical_and(labels >= 0, labels <= 0.5), weights, 0.0)
        positive, negative = ops.expand_dims(scores, 2), ops.expand_dims(scores, 1)
        wins = ops.cast(positive > negative, self.dtype)
        wins = wins + 0.5 * ops.cast(ops.equal(positive, negative), self.dtype)
        won = ops.einsum("bi,bij,bj->b", of_positive, wins, of_negative)
        sums = ops.sum(of_positive, axis=1), ops.sum(of_negative, axis=1)
        pairs = sums[0] * sums[1]
        both = pairs > 0
        auc = ops.where(both, won / ops.where(both, pairs, 1.0), 0.0)
        of_group = sums[0] + sums[1] if self.weighting == "impressions" else ops.ones_like(pairs)
        of_group = ops.where(both, of_group, 0.0)
        self.total.assign_add(ops.sum(of_group * auc))
        self.weight.assign_add(ops.sum(of_group))

    def result(self) -> Tensor:
        """The weighted mean of the groups' AUC."""
        return ops.where(self.weight > 0, self.total / ops.maximum(self.weight, 1e-30), 0.0)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {**super().get_config(), "weighting": self.weighting}


def _rows(values: Tensor) -> Tensor:
    """[B, N] also of [B, N, 1], which is how candidates with weights of their own come."""
    return ops.squeeze(values, -1) if len(values.shape) == 3 and values.shape[-1] == 1 else values
