"""Base of the losses that compare the candidates of one request."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_agrees, check_bool, check_rank
from laser_keras.sequence import stable_dtype
from laser_keras.types import Tensor


class ListLoss(keras.losses.Loss):
    """A loss with one value per request; subclasses implement ``of_lists``.

    ``of_lists(labels, logits, valid)`` gets tensors [B, N] and returns [B], zero for a request
    that has nothing to compare. A negative label marks a padded candidate.

    Args:
        from_logits: Boolean. Whether scores are logits; probabilities are turned into logits.
        **kwargs: Arguments of ``keras.losses.Loss``.
    """

    per_list = True
    """Weights belong to requests, not to candidates."""

    def __init__(self, from_logits: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = check_bool(self.name, "from_logits", from_logits)

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Any:
        """The mean over requests, weighted by ``sample_weight`` [B] where it is given."""
        if sample_weight is not None:
            shape = tuple(ops.convert_to_tensor(sample_weight).shape)
            check_rank(self.name, "sample_weight", shape, (0, 1), "[B], one weight per request")
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One loss per request: [B]."""
        check_rank(self.name, "y_pred", tuple(y_pred.shape), (2,), "[B, N]")
        check_agrees(self.name, "y_true", tuple(y_true.shape), tuple(y_pred.shape), "[B, N]")
        dtype = stable_dtype(keras.backend.standardize_dtype(y_pred.dtype))
        labels, scores = ops.cast(y_true, dtype), ops.cast(y_pred, dtype)
        valid = labels >= 0
        # What padding scores must not matter, not even in the gradient.
        scores = ops.where(valid, scores, 0.0 if self.from_logits else 0.5)
        if not self.from_logits:
            scores = ops.clip(scores, 1e-7, 1.0 - 1e-7)
            scores = ops.log(scores) - ops.log1p(-scores)
        return self.of_lists(ops.where(valid, labels, 0.0), scores, valid)

    def of_lists(self, labels: Tensor, logits: Tensor, valid: Tensor) -> Tensor:
        """Losses [B] of labels, logits and the mask of real candidates, all [B, N]."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {**super().get_config(), "from_logits": self.from_logits}
