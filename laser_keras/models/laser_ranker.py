"""The LASER click model."""

from typing import Any

import keras

from laser_keras.encoders.laser_encoder import LaserEncoder
from laser_keras.models.sequence_ranker import SequenceRanker


@keras.saving.register_keras_serializable(package="laser_keras")
class LaserRanker(SequenceRanker):
    """Scores candidates by a long history: tokenizer, LASER encoder, RankMixer, click head.

    Use it as the complete click model when histories are long; it trains with ``fit`` and exports
    with ``export``. For another encoder in the same model use ``SequenceRanker``.

    Inputs, outputs and the arguments from ``recency`` on are those of ``SequenceRanker``; the
    arguments of the encoder are those of ``LaserEncoder``. ``dropout`` applies to the encoder's
    feed-forward network as well.

    Weights depend neither on the length of the history nor on the number of candidates.

    Args:
        dim: Integer d, width of the tokens. Defaults to 128.
        num_heads: Integer. Defaults to 2.
        key_dim: Integer. Defaults to 16.
        segment_size: Integer w. Defaults to 10.
        ffn_expansion: Integer. Defaults to 4.
        num_layers: Integer M. Defaults to 2.
        num_recent_segments: Integer R. Defaults to 5.
        gate: ``"sigmoid"`` or ``"softmax"``. Defaults to ``"sigmoid"``.
        gamma: Number, ``"learned"`` or None. Defaults to 0.1.
        gate_bias: Float, ``"auto"`` or None. Defaults to ``"auto"``.
        aligned_start: Boolean. Defaults to True.
        norm: ``"post"``, ``"pre"`` or ``"none"``. Defaults to ``"none"``.
        implementation: ``"auto"``, ``"project"`` or ``"absorb"``. Defaults to ``"auto"``.
        dropout: Float in [0, 1). Defaults to 0.
        lora_rank: None, or the rank of what ``ranker.encoder.enable_lora`` adds to the encoder's
            kernels. Defaults to None.
        **kwargs: ``recency``, ``num_tokens``, ``mixer_dim``, ``mixer_blocks``,
            ``mixer_expansion``, ``mixer``, ``activation``, ``recency_options``, ``mixer_options``,
            ``num_outputs``, ``shared_width``, ``embedding`` of ``SequenceRanker`` and
            the arguments of ``keras.Model``.

    Call arguments:
        inputs: See ``SequenceRanker``.
        return_gates: Boolean. Whether to return what opened the gates as well.

    Returns:
        Tensor [B, N] ([B] with a target [B, e_t]), float32 even under a half-precision policy.
        With ``return_gates`` a dict, see ``SequenceRanker``.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit, and for missing or unexpected
            inputs.

    Example:

    >>> import numpy as np
    >>> ranker = LaserRanker(dim=32, num_tokens=8, mixer_dim=64)
    >>> inputs = {
    ...     "history": np.ones((2, 60, 24), "float32"),
    ...     "history_mask": np.arange(60) < np.array([[60], [7]]),
    ...     "history_age": np.ones((2, 60), "int32"),
    ...     "target": np.ones((2, 3, 20), "float32"),
    ...     "context": np.ones((2, 5), "float32"),
    ... }
    >>> tuple(ranker(inputs).shape)
    (2, 3)

    Source: LASER (arXiv 2602.11562), figure 1.
    """

    def __init__(
        self,
        dim: int = 128,
        num_heads: int = 2,
        key_dim: int = 16,
        segment_size: int = 10,
        ffn_expansion: int = 4,
        num_layers: int = 2,
        num_recent_segments: int = 5,
        gate: str = "sigmoid",
        gamma: float | str | None = 0.1,
        gate_bias: float | str | None = "auto",
        aligned_start: bool = True,
        norm: str = "none",
        implementation: str = "auto",
        dropout: float = 0.0,
        lora_rank: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._encoder_arguments: dict[str, Any] = {
            "num_heads": num_heads,
            "key_dim": key_dim,
            "segment_size": segment_size,
            "ffn_expansion": ffn_expansion,
            "num_layers": num_layers,
            "num_recent_segments": num_recent_segments,
            "gate": gate,
            "gamma": gamma,
            "gate_bias": gate_bias,
            "aligned_start": aligned_start,
            "norm": norm,
            "implementation": implementation,
        }
        super().__init__(
            encoder=LaserEncoder(
                **self._encoder_arguments,
                dropout=dropout,
                lora_rank=lora_rank,
                dtype=kwargs.get("dtype"),
                name="encoder",
            ),
            dim=dim,
            dropout=dropout,
            **kwargs,
        )

    def _saved_apart(self) -> list[keras.layers.Layer]:
        # The encoder is made anew from the ranker's own arguments.
        return [layer for layer in super()._saved_apart() if layer is not self.encoder]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        config = super().get_config()
        del config["encoder"]
        return {**config, **self._encoder_arguments, "lora_rank": self.encoder.lora_rank}
