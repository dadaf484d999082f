"""RankMixer: feature interaction by parameter-free token mixing and per-token networks."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from laser_keras.activations import activation_name, get_activation
from laser_keras.checks import (
    check_choice,
    check_divides,
    check_inputs,
    check_int,
    check_known_width,
    check_number,
    check_rank,
    check_rate,
)
from laser_keras.layers.kernel_layer import KernelLayer
from laser_keras.layers.per_token_feed_forward import PerTokenFeedForward, per_token_kernel
from laser_keras.layers.per_token_mixture_of_experts import PerTokenMixtureOfExperts
from laser_keras.types import Shape, Tensor


def mix_tokens(tokens: Tensor) -> Tensor:
    """Multi-head token mixing of T tokens with T heads, on a token-major tensor [T, M, D].

    New token ``h`` is the concatenation of head ``h`` (D / T numbers) of every token: a
    permutation that is its own inverse.

    >>> import numpy as np
    >>> tokens = np.array([[[1, 2, 3, 4]], [[5, 6, 7, 8]]])
    >>> keras.ops.convert_to_numpy(mix_tokens(tokens)).tolist()
    [[[1, 2, 5, 6]], [[3, 4, 7, 8]]]
    """
    count, samples, width = ops.shape(tokens)
    heads = ops.reshape(tokens, (count, samples, count, width // count))
    return ops.reshape(ops.transpose(heads, (2, 1, 0, 3)), (count, samples, width))


def _label(group: str | None) -> str:
    return "inputs" if group is None else f"inputs[{group!r}]"


@keras.saving.register_keras_serializable(package="laser_keras")
class RankMixer(KernelLayer):
    """Cuts concatenated features into T tokens and lets them interact.

    Use it as the part of a ranker that crosses user, item, context and sequence features, in place
    of an MLP, DCN or attention over features. It scales well with width; for a handful of features
    ``FeatureMLP`` is enough.

    *Semantic tokenisation*: the features of a group are concatenated and cut into slices of equal
    width (the last one padded with zeros); each slice is projected to D by weights of its own.
    Each block then computes, with LN a layer normalisation over D::

        S = LN(mix(X) + X)        X = LN(PFFN(S) + S)

    where ``mix`` permutes (no parameters) and PFFN has weights per token. The output is the mean
    over tokens.

    Args:
        num_tokens: Integer T, divides D. Ignored when ``groups`` is given. Defaults to 16.
        dim: Integer D. Defaults to 768 (the paper's 100M setting).
        num_blocks: Integer. More post-norm blocks are reported to harm. Defaults to 2.
        ffn_expansion: Integer. Defaults to 4.
        groups: Mapping from the name of a group to its number of tokens, or None for one nameless
            group. No slice straddles two groups. T is the sum. Defaults to None.
        activation: Of the per-token networks. Defaults to ``"gelu"``.
        norm: ``"post"`` as in the paper, or ``"pre"``. Defaults to ``"post"``.
        epsilon: Float of the layer normalisations. Defaults to 1e-6.
        dropout: Float in [0, 1), inside the per-token networks. Defaults to 0.
        num_experts: Integer, for the sparse variant: each token has that many networks of its own,
            see ``PerTokenMixtureOfExperts``. 0 gives the dense variant. Defaults to 0.
        active_budget: Float in (0, 1], the share of experts that is to stay active in the sparse
            variant. Defaults to 0.5.
        **kwargs: ``kernel_initializer``, ``bias_initializer``, ``kernel_regularizer``,
            ``bias_regularizer``, ``kernel_constraint`` and ``bias_constraint`` as of
            ``keras.layers.Dense``, and the arguments of
            ``keras.layers.Layer``.

    Call arguments:
        inputs: Float tensor [..., E], or with ``groups`` a mapping from each group's name to
            [..., E_g]; the leading dimensions (B, or B and N) are the same for all groups.

    Returns:
        Float tensor [..., D].

    Raises:
        ValueError: if T does not divide D, a group is missing or has fewer numbers than tokens.

    Example:

    >>> import numpy as np
    >>> mixer = RankMixer(dim=32, groups={"user": 3, "item": 1})
    >>> features = {"user": np.ones((2, 5, 30), "float32"), "item": np.ones((2, 5, 7), "float32")}
    >>> tuple(mixer(features).shape)
    (2, 5, 32)

    Source: RankMixer (arXiv 2507.15551), sections 3.2 to 3.4.
    """

    def __init__(
        self,
        num_tokens: int = 16,
        dim: int = 768,
        num_blocks: int = 2,
        ffn_expansion: int = 4,
        groups: Mapping[str, int] | None = None,
        activation: Any = "gelu",
        norm: str = "post",
        epsilon: float = 1e-6,
        dropout: float = 0.0,
        num_experts: int = 0,
        active_budget: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dim = check_int(self.name, "dim", dim, 1)
        self.groups = None
        if groups is not None:
            if not groups:
                raise ValueError(
                    f"{self.name}: `groups` must name at least one group. Received: {groups!r}"
                )
            self.groups = {
                name: check_int(self.name, f"groups[{name!r}]", tokens, 1)
                for name, tokens in groups.items()
            }
            num_tokens = sum(self.groups.values())
        self.num_tokens = check_int(self.name, "num_tokens", num_tokens, 1)
        check_divides(
            self.name, "the number of tokens T", self.num_tokens, "`dim` (the width D)", dim
        )
        self.num_blocks = check_int(self.name, "num_blocks", num_blocks, 1)
        self.ffn_expansion = check_int(self.name, "ffn_expansion", ffn_expansion, 1)
        self.activation = get_activation(activation)
        self.norm = check_choice(self.name, "norm", norm, ("post", "pre"))
        self.epsilon = check_number(self.name, "epsilon", epsilon, 0)
        self.dropout = check_rate(self.name, "dropout", dropout)
        self._mixing_norms = [self._layer_norm(f"mixing_norm_{i}") for i in range(num_blocks)]
        self._ffn_norms = [self._layer_norm(f"ffn_norm_{i}") for i in range(num_blocks)]
        self.num_experts = check_int(self.name, "num_experts", num_experts, 0)
        self.active_budget = active_budget
        self._ffns = [self._per_token_network(f"per_token_ffn_{i}") for i in range(num_blocks)]

    def _layer_norm(self, name: str) -> keras.layers.Layer:
        return keras.layers.LayerNormalization(
            epsilon=self.epsilon, dtype=self.float_policy, name=name
        )

    def _per_token_network(self, name: str) -> keras.layers.Layer:
        arguments = {
            "expansion": self.ffn_expansion,
            "activation": self.activation,
            "dropout": self.dropout,
            **self.kernel_options(),
            "dtype": self.dtype_policy,
            "name": name,
        }
        if not self.num_experts:
            return PerTokenFeedForward(**arguments)
        return PerTokenMixtureOfExperts(
            num_experts=self.num_experts, active_budget=self.active_budget, **arguments
        )

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs of these shapes."""
        self._projections = {}
        for name, tokens, shape in self._each_group(input_shape):
            label = _label(name)
            width = check_known_width(self.name, label, shape)
            if width < tokens:
                raise ValueError(
                    f"{self.name}: `{label}` must hold at least one number per token. "
                    f"Received: {width} numbers for {tokens} tokens. Use fewer tokens."
                )
            prefix = "" if name is None else f"{name}_"
            kernel = per_token_kernel(
                self, (tokens,), -(-width // tokens), self.dim, f"{prefix}token_kernel"
            )
            bias = self.add_bias(f"{prefix}token_bias", (tokens, 1, self.dim))
            self._projections[name or ""] = (kernel, bias)
        tokens_shape = (self.num_tokens, None, self.dim)
        for sublayer in (*self._mixing_norms, *self._ffns, *self._ffn_norms):
            sublayer.build(tokens_shape)
        self.finish_build()

    def call(self, inputs: Any, training: bool | None = None) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        groups = self._each_group(inputs)
        # Padding and flattening would accept other widths and leading dimensions silently.
        check_inputs(self, inputs=inputs)
        leading = ops.shape(groups[0][2])[:-1]
        x = ops.concatenate([self._tokenize(*group) for group in groups], axis=0)
        for mixing_norm, ffn, ffn_norm in zip(
            self._mixing_norms, self._ffns, self._ffn_norms, strict=False
        ):
            if self.norm == "post":
                x = mixing_norm(mix_tokens(x) + x)
                x = ffn_norm(ffn(x, training=training) + x)
            else:
                x = x + mix_tokens(mixing_norm(x))
                x = x + ffn(ffn_norm(x), training=training)
        # Not `ops.mean`: in some versions of Keras it computes in float32 whatever the dtype.
        return ops.reshape(ops.sum(x / x.shape[0], axis=0), (*leading, self.dim))

    def _tokenize(self, name: str | None, tokens: int, features: Tensor) -> Tensor:
        """Cut [..., E] into slices and project each: [tokens, samples, D]."""
        kernel, bias = self._projections[name or ""]
        slice_width = kernel.shape[1]
        features = ops.reshape(features, (-1, features.shape[-1]))
        missing = tokens * slice_width - features.shape[-1]
        if missing:
            features = ops.pad(features, ((0, 0), (0, missing)))
        slices = ops.transpose(ops.reshape(features, (-1, tokens, slice_width)), (1, 0, 2))
        return ops.einsum("tmd,tdf->tmf", slices, self.effective(kernel)) + bias

    def _each_group(self, inputs: Any) -> list[tuple[str | None, int, Any]]:
        """(name, tokens, tensor or shape) of each group, in the order of ``groups``."""
        if self.groups is None:
            if isinstance(inputs, Mapping):
                raise ValueError(
                    f"{self.name}: `inputs` must be one tensor, because the layer has no `groups`. "
                    f"Received a mapping with the keys {sorted(inputs)}"
                )
            return [(None, self.num_tokens, self._with_batch(None, inputs))]
        if not isinstance(inputs, Mapping) or set(inputs) != set(self.groups):
            received = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(
                f"{self.name}: `inputs` must be a mapping with the keys {sorted(self.groups)}. "
                f"Received: {received}"
            )
        return [
            (name, tokens, self._with_batch(name, inputs[name]))
            for name, tokens in self.groups.items()
        ]

    def _with_batch(self, name: str | None, features: Any) -> Any:
        """A tensor or shape of at least two dimensions, as it came."""
        shape = tuple(getattr(features, "shape", features))
        check_rank(self.name, _label(name), shape, range(2, 33), "[..., E] with a batch axis")
        return features

    def compute_output_shape(self, input_shape: Any) -> Shape:
        """The output's shape for inputs of these shapes."""
        return (*self._each_group(input_shape)[0][2][:-1], self.dim)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "num_tokens": self.num_tokens,
            "dim": self.dim,
            "num_blocks": self.num_blocks,
            "ffn_expansion": self.ffn_expansion,
            "groups": None if self.groups is None else dict(self.groups),
            "activation": activation_name(self.activation),
            "norm": self.norm,
            "epsilon": self.epsilon,
            "dropout": self.dropout,
            "num_experts": self.num_experts,
            "active_budget": self.active_budget,
        }
