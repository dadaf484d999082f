"""The systems that LASER is compared with, by name."""

from collections.abc import Callable
from typing import Any

import keras

from laser_keras.encoders.din_encoder import DINEncoder
from laser_keras.encoders.hstu_encoder import HSTUEncoder
from laser_keras.encoders.laser_encoder import LaserEncoder
from laser_keras.encoders.longer_encoder import LONGEREncoder
from laser_keras.encoders.pooling_encoder import PoolingEncoder
from laser_keras.encoders.sim_encoder import SIMEncoder
from laser_keras.encoders.stca_encoder import STCAEncoder
from laser_keras.encoders.transformer_encoder import TransformerEncoder
from laser_keras.encoders.twin_encoder import TWINEncoder
from laser_keras.models.sequence_ranker import SequenceRanker

_ENCODERS: dict[str, Callable[..., keras.layers.Layer]] = {
    "base": lambda **options: TransformerEncoder(**{"recent_events": 100, **options}),
    "din": DINEncoder,
    "din_activation_unit": lambda **options: DINEncoder("activation_unit", **options),
    "hstu": HSTUEncoder,
    "laser": LaserEncoder,
    "longer": LONGEREncoder,
    "mean": PoolingEncoder,
    "recent_mean": lambda **options: PoolingEncoder(**{"recent_events": 50, **options}),
    "sim_hard": lambda **options: SIMEncoder("hard", **options),
    "sim_soft": SIMEncoder,
    "stca": STCAEncoder,
    "transformer": TransformerEncoder,
    "twin": TWINEncoder,
}

SYSTEMS = tuple(sorted(_ENCODERS))
"""Names that ``comparison_ranker`` knows."""


def comparison_ranker(
    system: str, encoder_options: dict[str, Any] | None = None, **kwargs: Any
) -> SequenceRanker:
    """A ranker that differs from the others in its sequence encoder alone.

    Args:
        system: One of ``SYSTEMS``.
        encoder_options: Arguments of that system's encoder.
        **kwargs: Arguments of ``SequenceRanker``.

    Raises:
        ValueError: for an unknown system.

    >>> comparison_ranker("hstu", {"dialect": "dlrm_v3"}, dim=64).encoder.dialect
    'dlrm_v3'
    """
    if system not in _ENCODERS:
        raise ValueError(f"`system` must be one of {list(SYSTEMS)}. Received: {system!r}")
    options = {"dtype": kwargs.get("dtype"), "name": "encoder", **(encoder_options or {})}
    return SequenceRanker(_ENCODERS[system](**options), **kwargs)
