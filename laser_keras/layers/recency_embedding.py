"""Recency embedding: the age of an event as a trainable vector."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from laser_keras.checks import check_ages, check_int, check_mask
from laser_keras.portable_state import PortableState
from laser_keras.sequence import exact_bucket
from laser_keras.types import Shape, Tensor

_UNIT_SECONDS = 60


@keras.saving.register_keras_serializable(package="laser_keras")
class RecencyEmbedding(PortableState, keras.layers.Layer):
    """Embeds the age of an event (request time minus event time) in logarithmic buckets.

    Use it to tell an encoder how old each event is, when the order alone does not.
    ``SequenceTokenizer`` already contains one.

    The bucket of an age of ``a`` seconds is ``floor(8 log2(1 + a / 60))``: about ten seconds wide
    for new events, 9 % of the age for old ones. Row 0 is for unknown ages, bucket ``k`` has row
    ``k + 1``; the last row takes everything older (more than 25 years with 192 rows). Bucket
    edges are compared in integers, so that every backend and device finds the same row.

    Args:
        dim: Integer d. Defaults to 128.
        num_buckets: Integer. Rows of the table, row 0 included. Defaults to 192.
        buckets_per_doubling: Integer. Defaults to 8.
        embeddings_initializer: Initialiser of the table. Defaults to ``"uniform"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        age: Integer tensor of any shape, in seconds. Subtract the times as integers first:
            float32 cannot tell apart times within 128 s in this century. Negative ages
            (clock skew) count as 0.
        mask: Optional boolean tensor of the same shape, False where the age is unknown.

    Returns:
        Float tensor [..., d].

    Raises:
        ValueError: if ``age`` is not an integer tensor or the mask does not fit.

    Example:

    >>> import numpy as np
    >>> layer = RecencyEmbedding(dim=4)
    >>> keras.ops.convert_to_numpy(layer.rows(np.array([-5, 0, 60, 86400, 157680000]))).tolist()
    [1, 1, 9, 84, 171]
    >>> tuple(layer(np.array([[0, 3600]])).shape)
    (1, 2, 4)

    Source: LASER (arXiv 2602.11562), section 3.4.1; it prints no bucketing, these are ours.
    """

    def __init__(
        self,
        dim: int = 128,
        num_buckets: int = 192,
        buckets_per_doubling: int = 8,
        embeddings_initializer: Any = "uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dim = check_int(self.name, "dim", dim, 1)
        self.num_buckets = check_int(self.name, "num_buckets", num_buckets, 2)
        self.buckets_per_doubling = check_int(
            self.name, "buckets_per_doubling", buckets_per_doubling, 1
        )
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        # Smallest age of bucket k; its row is k + 1.
        edges = [
            math.ceil(_UNIT_SECONDS * (2.0 ** (k / buckets_per_doubling) - 1))
            for k in range(num_buckets - 1)
        ]
        self._edges = np.minimum(edges, np.iinfo(np.int32).max).astype("int32")

    def build(self, input_shape: Shape | None = None) -> None:
        """Create the weights for inputs of these shapes."""
        self.embeddings = self.add_weight(
            shape=(self.num_buckets, self.dim),
            initializer=self.embeddings_initializer,
            name="embeddings",
        )

    def rows(self, age: Tensor, mask: Tensor | None = None) -> Tensor:
        """The table row of each age: int32 tensor of the shape of ``age``."""
        age = check_ages(self.name, "age", age, tuple(age.shape), "[...]")
        doublings = ops.log2(1.0 + ops.cast(age, "float32") / _UNIT_SECONDS)
        rows = exact_bucket(age, doublings * self.buckets_per_doubling, self._edges) + 1
        if mask is None:
            return rows
        mask = check_mask(self.name, "mask", mask, tuple(age.shape), "of the age")
        return ops.where(mask, rows, ops.zeros_like(rows))

    def call(self, age: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        table = ops.cast(self.embeddings, self.compute_dtype)
        return ops.take(table, self.rows(age, mask), axis=0)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The output's shape for inputs of these shapes."""
        return (*input_shape, self.dim)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "dim": self.dim,
            "num_buckets": self.num_buckets,
            "buckets_per_doubling": self.buckets_per_doubling,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }
