"""Sequence tokenizer: turns features of a history and its targets into tokens of one width."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from laser_keras.checks import (
    check_agrees,
    check_choice,
    check_inputs,
    check_int,
    check_known_width,
    check_rank,
)
from laser_keras.layers.recency_embedding import RecencyEmbedding
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.sequence import linear, zero_masked
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class SequenceTokenizer(SequenceLayer):
    """Turns features of events and of targets into tokens ``h_j`` and ``t`` of width d.

    Use it ahead of any encoder to bring the features of events and candidates to one width.
    ``SequenceRanker`` already contains one.

    Per side, the features are concatenated and projected by a dense layer of that side's own; the
    recency embedding of the event's age is added to its token. A feature is either a tensor of ids
    that looks up a table (shared by both sides when they share the name) or a float vector that is
    used as it comes (an embedding looked up elsewhere, or a frozen content vector). Behaviour
    features such as the action type have no target value: simply leave them out of the target.

    Similarity scores depend on the target. They are returned beside the tokens, to be passed to
    the encoder's ``similarity`` argument, where they stay additive, so that keys and values are
    still shared between the candidates of a request.

    Args:
        dim: Integer d. Defaults to 128.
        tables: Mapping from the name of an id feature to ``(rows, width)`` of its trainable
            table, or None. Defaults to None.
        similarity: Names of float-vector features, present on both sides, whose cosine similarity
            is computed. Defaults to none.
        recency: ``"add"`` the recency embedding to the token, ``"concat"`` it to the features, or
            ``"none"``. Defaults to ``"add"``.
        recency_options: Further arguments of ``RecencyEmbedding``. Defaults to None.
        shared_width: Integer. The first ``shared_width`` columns of a history tensor and of a
            target tensor hold the same features (say, the item's embedding and its content
            vector); their rows of both projections start equal, so that tokens of alike items
            start alike. They are trained apart. Not for mappings. Defaults to 0.
        **kwargs: ``kernel_initializer``, ``bias_initializer``, ``kernel_regularizer``,
            ``bias_regularizer``, ``kernel_constraint`` and ``bias_constraint`` as of
            ``keras.layers.Dense``, ``lora_rank`` (see ``enable_lora``), and the arguments of
            ``keras.layers.Layer``.

    Call arguments:
        history: Float tensor [B, L, e], or a mapping of features: ids [B, L], vectors [B, L, k].
        target: Float tensor [B, N, e'] or [B, e'], or a mapping of features: ids [B, N] or [B],
            vectors [B, N, k] or [B, k].
        age: Integer tensor [B, L] of seconds; required unless ``recency="none"``.
        mask: Optional boolean tensor [B, L], True for valid events. The vectors of other events
            are replaced by zeros first, so that NaN in padding reaches no weight's gradient.

    Returns:
        A dict: ``"history"`` [B, L, d], ``"target"`` [B, N, d] or [B, d], and, if asked for,
        ``"similarity"`` [B, N, L, m] or [B, L, m].

    Raises:
        ValueError: for features that are missing or unexpected, and shapes that do not fit.

    Example:

    >>> import numpy as np
    >>> tokenizer = SequenceTokenizer(dim=16, tables={"item": (100, 8)}, similarity=["image"])
    >>> history = {"item": np.ones((2, 5), int), "image": np.ones((2, 5, 4), "float32")}
    >>> target = {"item": np.ones((2, 3), int), "image": np.ones((2, 3, 4), "float32")}
    >>> tokens = tokenizer(history, target, age=np.ones((2, 5), int))
    >>> {name: tuple(value.shape) for name, value in sorted(tokens.items())}
    {'history': (2, 5, 16), 'similarity': (2, 3, 5, 1), 'target': (2, 3, 16)}

    Source: LASER (arXiv 2602.11562), section 3.4.1; the scores are those of GIST (2507.05142).
    """

    def __init__(
        self,
        dim: int = 128,
        tables: Mapping[str, Sequence[int]] | None = None,
        similarity: Sequence[str] = (),
        recency: str = "add",
        recency_options: Mapping[str, Any] | None = None,
        shared_width: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dim = check_int(self.name, "dim", dim, 1)
        self.tables = {
            name: (
                check_int(self.name, f"tables[{name!r}] rows", rows, 1),
                check_int(self.name, f"tables[{name!r}] width", width, 1),
            )
            for name, (rows, width) in (tables or {}).items()
        }
        self.similarity = tuple(similarity)
        for name in self.similarity:
            if name in self.tables:
                raise ValueError(
                    f"{self.name}: `similarity` must name float-vector features. "
                    f"Received the id feature {name!r}"
                )
        self.recency = check_choice(self.name, "recency", recency, ("add", "concat", "none"))
        self.recency_options = dict(recency_options or {})
        self.shared_width = check_int(self.name, "shared_width", shared_width, 0)
        self._recency_embedding = (
            RecencyEmbedding(
                dim, dtype=self.float_policy, name="recency_embedding", **self.recency_options
            )
            if recency != "none"
            else None
        )
        self._tables = {
            name: keras.layers.Embedding(rows, width, dtype=self.float_policy, name=name)
            for name, (rows, width) in self.tables.items()
        }

    def build(self, history_shape: Any, target_shape: Any, age_shape: Shape | None = None) -> None:
        """Create the weights for inputs of these shapes."""
        self._check_shapes(history_shape, target_shape)
        self._history_names = _names(history_shape)
        self._target_names = _names(target_shape)
        history_width = self._width("history", history_shape)
        if self._recency_embedding is not None:
            self._recency_embedding.build()
            history_width += self.dim if self.recency == "concat" else 0
        for _name, table in self._tables.items():
            table.build(None)
        target_width = self._width("target", target_shape)
        self._check_shared(history_shape, target_shape)
        # One object for both sides: it gives the same values each time it is called.
        shared = self.initial(keras.initializers.GlorotUniform())
        self.history_kernel, self.history_bias = self._projection("history", history_width, shared)
        self.target_kernel, self.target_bias = self._projection("target", target_width, shared)
        self.finish_build()

    def _projection(
        self, side: str, width: int, shared: keras.initializers.Initializer
    ) -> tuple[Any, Any]:
        def initial(shape: Shape, dtype: Any = None) -> Tensor:
            own = self.initial(keras.initializers.GlorotUniform())
            rows = own((width - self.shared_width, self.dim), dtype)
            if not self.shared_width:
                return rows
            return ops.concatenate([shared((self.shared_width, self.dim), dtype), rows], axis=0)

        kernel = self.add_kernel(f"{side}_kernel", (width, self.dim), initial)
        return kernel, self.add_bias(f"{side}_bias", (self.dim,))

    def _check_shared(self, history_shape: Any, target_shape: Any) -> None:
        if not self.shared_width:
            return
        for side, shape in (("history", history_shape), ("target", target_shape)):
            if isinstance(shape, Mapping) or shape[-1] < self.shared_width:
                raise ValueError(
                    f"{self.name}: with `shared_width`, `{side}` must be a tensor of at least "
                    f"{self.shared_width} columns. Received: {shape}"
                )

    def call(
        self, history: Any, target: Any, age: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the output; the class docstring names shapes and dtypes."""
        self._check_shapes(_shapes(history), _shapes(target))
        for side, features, names in (
            ("history", history, self._history_names),
            ("target", target, self._target_names),
        ):
            if _names(features) != names:
                raise ValueError(
                    f"{self.name}: `{side}` must hold the features the layer was built with, "
                    f"{names}. Received: {_names(features)}"
                )
        check_inputs(self, self.tables, history=history, target=target)
        history_vectors = self._vectors(history)
        events = history_vectors[0]
        mask = self._valid(mask, events, tuple(events.shape[:2]), "[B, L]")
        if mask is not None:
            history_vectors = [zero_masked(vectors, mask) for vectors in history_vectors]
        recency = None
        if self._recency_embedding is not None:
            if age is None:
                raise ValueError(
                    f"{self.name}: `age` (seconds, integers [B, L]) is missing. Pass it, or build "
                    "the layer with recency='none'. Received: None"
                )
            recency = self._recency_embedding(age)
            check_agrees(
                self.name,
                "age",
                tuple(age.shape),
                tuple(history_vectors[0].shape[:2]),
                "[B, L]",
            )
        if self.recency == "concat":
            history_vectors.append(recency)
        kernel = self.effective(self.history_kernel)
        tokens = linear(_concatenate(history_vectors), kernel, self.history_bias)
        outputs = {
            "history": tokens + recency if self.recency == "add" else tokens,
            "target": linear(
                _concatenate(self._vectors(target)),
                self.effective(self.target_kernel),
                self.target_bias,
            ),
        }
        if self.similarity:
            outputs["similarity"] = ops.stack(
                [
                    _cosine(zero_masked(history[name], mask), target[name])
                    for name in self.similarity
                ],
                axis=-1,
            )
        return outputs

    def _vectors(self, features: Any) -> list[Tensor]:
        if not isinstance(features, Mapping):
            return [features]
        return [
            self._tables[name](features[name]) if name in self._tables else features[name]
            for name in _names(features)
        ]

    def _width(self, side: str, shapes: Any) -> int:
        if not isinstance(shapes, Mapping):
            return check_known_width(self.name, side, shapes)
        return sum(
            self.tables[name][1]
            if name in self.tables
            else check_known_width(self.name, f"{side}[{name!r}]", shape)
            for name, shape in shapes.items()
        )

    def _check_shapes(self, history_shape: Any, target_shape: Any) -> None:
        for name in self.similarity:
            for side, shapes in (("history", history_shape), ("target", target_shape)):
                if not isinstance(shapes, Mapping) or name not in shapes:
                    raise ValueError(
                        f"{self.name}: `{side}` must be a mapping that holds the feature {name!r} "
                        f"named in `similarity`. Received: {shapes}"
                    )
        for side, shapes, ranks, layout in (
            ("history", history_shape, (2,), "[B, L]"),
            ("target", target_shape, (1, 2), "[B, N] or [B]"),
        ):
            items = shapes.items() if isinstance(shapes, Mapping) else [("", shapes)]
            for name, shape in items:
                label = f"{side}[{name!r}]" if name else side
                if name in self.tables:
                    check_rank(self.name, label, shape, ranks, layout)
                else:
                    vector_ranks = tuple(rank + 1 for rank in ranks)
                    check_rank(self.name, label, shape, vector_ranks, f"{layout} + [k]")

    def compute_output_shape(
        self, history_shape: Any, target_shape: Any, age_shape: Shape | None = None
    ) -> dict[str, Shape]:
        """The output's shape for inputs of these shapes."""
        self._check_shapes(history_shape, target_shape)
        history = self._leading(history_shape)
        target = self._leading(target_shape)
        shapes = {"history": (*history, self.dim), "target": (*target, self.dim)}
        if self.similarity:
            shapes["similarity"] = (*target, history[1], len(self.similarity))
        return shapes

    def _leading(self, shapes: Any) -> Shape:
        if not isinstance(shapes, Mapping):
            return tuple(shapes[:-1])
        name, shape = next(iter(shapes.items()))
        return tuple(shape if name in self.tables else shape[:-1])

    def compute_output_spec(
        self, history: Any, target: Any, age: Any = None, mask: Any = None
    ) -> Any:
        """Shapes and dtype of the output for symbolic inputs."""
        shapes = self.compute_output_shape(_shapes(history), _shapes(target))
        return {
            name: keras.KerasTensor(shape, dtype=self.compute_dtype)
            for name, shape in shapes.items()
        }

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "dim": self.dim,
            "tables": {name: list(sizes) for name, sizes in self.tables.items()},
            "similarity": list(self.similarity),
            "recency": self.recency,
            "recency_options": self.recency_options,
            "shared_width": self.shared_width,
        }


def _shapes(features: Any) -> Any:
    if isinstance(features, Mapping):
        return {name: tuple(value.shape) for name, value in features.items()}
    return tuple(features.shape)


def _names(features: Any) -> list[str]:
    """Names of the features in a fixed order, so that the order of a dict never matters.

    A lone tensor has no names.
    """
    return sorted(features) if isinstance(features, Mapping) else []


def _concatenate(vectors: list[Tensor]) -> Tensor:
    return vectors[0] if len(vectors) == 1 else ops.concatenate(vectors, axis=-1)


def _cosine(history: Tensor, target: Tensor) -> Tensor:
    """Cosine of events [B, L, k] and targets [B, N, k] or [B, k]: [B, N, L] or [B, L]."""
    axes = "bk,blk->bl" if len(target.shape) == 2 else "bnk,blk->bnl"
    return ops.einsum(axes, ops.normalize(target, axis=-1), ops.normalize(history, axis=-1))
