"""Raw features of a request to the inputs of a ranker."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_int, check_rank
from laser_keras.portable_state import PortableState
from laser_keras.types import Tensor

_PASSED_ON = ("history_age", "history_mask")


@keras.saving.register_keras_serializable(package="laser_keras")
class FeatureEmbedding(PortableState, keras.layers.Layer):
    """Embeds the raw features of a request as the inputs of ``SequenceRanker``.

    Use it as the shortest way from raw ids to a trained ranker:
    ``LaserRanker(embedding=FeatureEmbedding({"item_id": 50_000}))``. For tables of many millions of
    rows use the parameter servers of the pipeline instead.

    The name of a feature says what it belongs to: ``history_x`` to the events and ``candidate_x``
    to the candidates, and both look up table ``x``; any other name is a feature of the request.
    Candidate features that the history has too make up the target, the others are the ``candidate``
    features.

    Id 0 (after the lookup) is padding: its vector is not used, and events of it are masked.

    Args:
        tables: Mapping from the name of each id feature to the rows of its table (an integer, ids
            are row numbers), or to a lookup that makes row numbers of ids:
            ``keras.layers.StringLookup`` or ``IntegerLookup`` with a ``mask_token``, or
            ``Hashing`` with a ``mask_value``. Or to a pair of either and the table's width.
            Keras' lookups run on TensorFlow; on JAX and PyTorch apply them ahead of the model.
        dim: Integer, width of the tables without one of their own. Defaults to 16.
        embeddings_initializer: Initialiser of the tables. Defaults to ``"uniform"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        inputs: A mapping of ids and float features, at least one of the history and one of the
            candidates:

            * of events: ids [B, L] or [B, L, T] (T values, averaged), floats [B, L, k];
            * of candidates: ids [B, N] or [B, N, T], floats [B, N, k];
            * of the request: ids [B] or [B, T], floats [B, k];
            * ``history_age``: integer seconds [B, L], passed on;
            * ``history_mask``: boolean [B, L]; without it events of id 0 (in the first id feature
              of the history, by name) are padding.

    Returns:
        A dict of ``history``, ``history_mask``, ``target`` and, where there are such features,
        ``history_age``, ``candidate`` and ``context``: the inputs of ``SequenceRanker``.

    Raises:
        ValueError: for a lookup without a padding value, missing inputs, and shapes that do not
            fit.

    Example:

    >>> import numpy as np
    >>> embedding = FeatureEmbedding({"item_id": 100, "user_id": (50, 4)}, dim=8)
    >>> outputs = embedding({
    ...     "history_item_id": np.array([[5, 9, 0]]),
    ...     "candidate_item_id": np.array([[7, 5]]),
    ...     "user_id": np.array([3]),
    ... })
    >>> {name: tuple(value.shape) for name, value in sorted(outputs.items())}
    {'context': (1, 4), 'history': (1, 3, 8), 'history_mask': (1, 3), 'target': (1, 2, 8)}

    Source: the usual embedding of ids; nothing of a paper's own.
    """

    def __init__(
        self,
        tables: Mapping[str, Any],
        dim: int = 16,
        embeddings_initializer: Any = "uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dim = check_int(self.name, "dim", dim, 1)
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self._lookups: dict[str, keras.layers.Layer] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        for name, table in tables.items():
            source, width = table if isinstance(table, (tuple, list)) else (table, self.dim)
            if isinstance(source, keras.layers.Layer):
                self._lookups[name] = source
            rows = self._rows(name, source)
            width = check_int(self.name, f"tables[{name!r}] width", width, 1)
            self._sizes[name] = (rows, width)
        self._tables = {
            name: keras.layers.Embedding(
                rows,
                width,
                embeddings_initializer=self.embeddings_initializer.__class__.from_config(
                    self.embeddings_initializer.get_config()
                ),
                dtype=self.dtype_policy,
                name=name,
            )
            for name, (rows, width) in self._sizes.items()
        }

    def _rows(self, name: str, source: Any) -> int:
        if not isinstance(source, keras.layers.Layer):
            return check_int(self.name, f"tables[{name!r}] rows", source, 2)
        padding = getattr(source, "mask_token", None), getattr(source, "mask_value", None)
        if padding == (None, None):
            raise ValueError(
                f"{self.name}: the lookup of `tables[{name!r}]` must have a `mask_token` or "
                "`mask_value`, so that 0 is padding and nothing else. Received: "
                f"{type(source).__name__} without one"
            )
        sized = getattr(source, "vocabulary_size", None)
        return int(source.num_bins if sized is None else sized())

    def build(self, input_shape: Any = None) -> None:
        """Create the tables."""
        for table in self._tables.values():
            table.build(None)

    def call(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the outputs; the class docstring names shapes and dtypes."""
        features: dict[str, list[Tensor]] = {
            "history": [],
            "target": [],
            "candidate": [],
            "context": [],
        }
        mask = inputs.get("history_mask")
        for name in sorted(inputs):
            if name in _PASSED_ON:
                continue
            key, feature, rank = _place(name, inputs)
            vectors, present = self._vectors(name, feature, inputs[name], rank)
            features[key].append(vectors)
            if key == "history" and mask is None:
                mask = present
        for key in ("history", "target"):
            if not features[key]:
                raise ValueError(
                    f"{self.name}: `inputs` must hold a feature `history_x` and the feature "
                    f"`candidate_x` of the same name. Received: {sorted(inputs)}"
                )
        if mask is None:
            raise ValueError(
                f"{self.name}: `inputs` must hold `history_mask`, or ids in the history that tell "
                f"padding. Received: {sorted(inputs)}"
            )
        outputs = {
            key: vectors[0] if len(vectors) == 1 else ops.concatenate(vectors, axis=-1)
            for key, vectors in features.items()
            if vectors
        }
        if "history_age" in inputs:
            outputs["history_age"] = inputs["history_age"]
        return {**outputs, "history_mask": mask}

    def _vectors(
        self, name: str, feature: str, values: Tensor, rank: int
    ) -> tuple[Tensor, Tensor | None]:
        """Vectors [..., width] of a feature, and which ids are not padding; None for floats."""
        shape = tuple(values.shape)
        if feature not in self._tables:
            check_rank(self.name, f"inputs[{name!r}]", shape, (rank + 1,), "[..., k] of floats")
            if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(values.dtype)):
                raise ValueError(
                    f"{self.name}: `inputs[{name!r}]` has no table {feature!r} in `tables` and "
                    f"must be a float tensor. Received dtype: {values.dtype}"
                )
            return ops.cast(values, self.compute_dtype), None
        check_rank(self.name, f"inputs[{name!r}]", shape, (rank, rank + 1), "ids, or T ids each")
        rows = self._lookups[feature](values) if feature in self._lookups else values
        rows = ops.cast(rows, "int32")
        present = ops.not_equal(rows, 0)
        vectors = ops.where(ops.expand_dims(present, -1), self._tables[feature](rows), 0.0)
        if len(shape) == rank:
            return vectors, present
        count = ops.sum(ops.cast(present, vectors.dtype), axis=-1, keepdims=True)
        return ops.sum(vectors, axis=-2) / ops.maximum(count, 1.0), ops.any(present, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        tables = {
            name: [
                keras.saving.serialize_keras_object(self._lookups[name])
                if name in self._lookups
                else rows,
                width,
            ]
            for name, (rows, width) in self._sizes.items()
        }
        return {
            **super().get_config(),
            "tables": tables,
            "dim": self.dim,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FeatureEmbedding":
        """Make the layer from its configuration."""
        tables = {
            name: (
                keras.saving.deserialize_keras_object(table) if isinstance(table, dict) else table,
                width,
            )
            for name, (table, width) in config["tables"].items()
        }
        return cls(**{**config, "tables": tables})


def _place(name: str, inputs: Mapping[str, Any]) -> tuple[str, str, int]:
    """Which input of the ranker a feature belongs to, its table's name, and the rank of its ids."""
    if name.startswith("history_"):
        return "history", name.removeprefix("history_"), 2
    if not name.startswith("candidate_"):
        return "context", name, 1
    feature = name.removeprefix("candidate_")
    return ("target" if f"history_{feature}" in inputs else "candidate"), feature, 2
