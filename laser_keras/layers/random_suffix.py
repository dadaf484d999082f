"""Random history lengths in training, so that a model can serve longer histories."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_int, check_mask, check_rank, is_number
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class RandomSuffix(keras.layers.Layer):
    """Hides the oldest events of each history, in training only.

    Use it in training when a model will serve longer histories than it can be trained on. It costs
    nothing at inference, where it passes the mask through.

    Per user, ``length = min_length + s (L - min_length)`` with ``s`` from a Beta distribution,
    rounded up to ``multiple``; the newest ``length`` positions stay visible. Shapes stay as they
    are: only the mask changes, so give the result to an encoder as its ``mask``. With the default
    U-shaped distribution short and full histories are the most frequent.

    Args:
        min_length: Integer. Defaults to 128.
        alpha: Float, of the Beta distribution. Defaults to 0.5.
        beta: Float, of the Beta distribution. Defaults to 0.5.
        multiple: Integer. Defaults to 8.
        seed: Integer or None. Defaults to None.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        valid: Boolean tensor [B, L], True for valid events, newest first.
        training: Whether to hide anything.

    Returns:
        Boolean tensor [B, L].

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> layer = RandomSuffix(min_length=2, multiple=2, seed=1)
    >>> visible = layer(np.ones((3, 10), bool), training=True)
    >>> bool(np.all(keras.ops.convert_to_numpy(visible).sum(axis=1) % 2 == 0))
    True

    Source: STCA (arXiv 2511.06077), section 3.3; the parameters of its Beta distribution are not
    printed.
    """

    def __init__(
        self,
        min_length: int = 128,
        alpha: float = 0.5,
        beta: float = 0.5,
        multiple: int = 8,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.min_length = check_int(self.name, "min_length", min_length, 1)
        self.multiple = check_int(self.name, "multiple", multiple, 1)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not (is_number(value) and value > 0):
                raise ValueError(
                    f"{self.name}: `{name}` must be a positive number. Received: {value!r}"
                )
        self.alpha = alpha
        self.beta = beta
        self.seed = seed
        self._generator = keras.random.SeedGenerator(seed)

    def build(self, valid_shape: Shape) -> None:
        """Check the shape; there are no weights."""
        check_rank(self.name, "valid", valid_shape, (2,), "[B, L]")

    def call(self, valid: Tensor, training: bool | None = None) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        shape = tuple(valid.shape)
        check_rank(self.name, "valid", shape, (2,), "[B, L]")
        mask = check_mask(self.name, "valid", valid, shape, "[B, L]")
        if not training:
            return mask
        batch, length = ops.shape(mask)
        share = keras.random.beta(
            (batch, 1), self.alpha, self.beta, dtype="float32", seed=self._generator
        )
        # Beta samples may round to just above 1 or, for tiny parameters, be undefined.
        share = ops.clip(ops.where(ops.isnan(share), 0.0, share), 0.0, 1.0)
        extra = ops.cast(ops.maximum(length - self.min_length, 0), "float32")
        kept = self.min_length + ops.cast(ops.ceil(share * extra), "int32")
        kept = (kept + self.multiple - 1) // self.multiple * self.multiple
        return ops.logical_and(mask, ops.arange(length, dtype="int32")[None, :] < kept)

    def compute_output_spec(self, valid: Any, training: bool | None = None) -> Any:
        """Shape and dtype of the output for symbolic inputs."""
        return keras.KerasTensor(valid.shape, dtype="bool")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "min_length": self.min_length,
            "alpha": self.alpha,
            "beta": self.beta,
            "multiple": self.multiple,
            "seed": self.seed,
        }
