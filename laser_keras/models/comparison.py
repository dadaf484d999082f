"""The systems that LASER is compared with, by name."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import keras

from laser_keras.encoders.din_encoder import DINEncoder
from laser_keras.encoders.hstu_encoder import HSTUEncoder
from laser_keras.encoders.laser_encoder import FAST, PRINTED, LaserEncoder
from laser_keras.encoders.longer_encoder import LONGEREncoder
from laser_keras.encoders.pooling_encoder import PoolingEncoder
from laser_keras.encoders.sim_encoder import SIMEncoder
from laser_keras.encoders.stca_encoder import STCAEncoder
from laser_keras.encoders.transformer_encoder import TransformerEncoder
from laser_keras.encoders.twin_encoder import TWINEncoder
from laser_keras.layers.kernel_layer import KernelLayer
from laser_keras.models.sequence_ranker import SequenceRanker

# The encoder of each system and the arguments that make it that system.
_ENCODERS: dict[str, tuple[type[keras.layers.Layer], dict[str, Any]]] = {
    "base": (TransformerEncoder, {"recent_events": 100}),
    "din": (DINEncoder, {}),
    "din_activation_unit": (DINEncoder, {"unit": "activation_unit"}),
    "hstu": (HSTUEncoder, {}),
    "laser": (LaserEncoder, {}),
    "laser_fast": (LaserEncoder, FAST),
    "laser_printed": (LaserEncoder, PRINTED),
    "longer": (LONGEREncoder, {}),
    "mean": (PoolingEncoder, {}),
    "recent_mean": (PoolingEncoder, {"recent_events": 50}),
    "sim_hard": (SIMEncoder, {"search": "hard"}),
    "sim_soft": (SIMEncoder, {"search": "soft"}),
    "stca": (STCAEncoder, {}),
    "transformer": (TransformerEncoder, {}),
    "twin": (TWINEncoder, {}),
}
# What names the system itself, and what belongs to a trained model: no options of a system.
_FIXED = ("unit", "search", "lora_rank")

SYSTEMS = tuple(sorted(_ENCODERS))
"""Names that ``comparison_ranker`` and ``comparison_encoder`` know."""


def encoder_options(system: str) -> dict[str, Any]:
    """The options of a system's encoder with their defaults.

    Raises:
        ValueError: for an unknown system.

    >>> encoder_options("base")["recent_events"]
    100
    >>> encoder_options("din")["bias_initializer"]  # of every encoder, as of keras.layers.Dense
    'zeros'
    """
    if system not in _ENCODERS:
        near = difflib.get_close_matches(str(system), SYSTEMS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"`system` must be one of {list(SYSTEMS)}. Received: {system!r}{hint}")
    encoder, preset = _ENCODERS[system]
    with_kernels = () if encoder is PoolingEncoder else (KernelLayer,)
    parameters = [
        parameter
        for layer in (*with_kernels, encoder)
        for parameter in inspect.signature(layer.__init__).parameters.values()
    ]
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return {name: value for name, value in {**defaults, **preset}.items() if name not in _FIXED}


def comparison_encoder(
    system: str, options: Mapping[str, Any] | None = None, **kwargs: Any
) -> keras.layers.Layer:
    """The encoder of a system.

    Args:
        system: One of ``SYSTEMS``.
        options: Arguments of that system's encoder, see ``encoder_options``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Raises:
        ValueError: for an unknown system, an option it does not have, or one that does not fit.

    >>> comparison_encoder("twin", {"top_k": 20}).top_k
    20
    """
    known = encoder_options(system)
    for name in options or {}:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"`options` of `system` {system!r} must be of {sorted(known)}. "
                f"Received: {name!r}{hint}"
            )
    encoder, preset = _ENCODERS[system]
    return encoder(**{**preset, **(options or {}), **kwargs})


def comparison_ranker(
    system: str, encoder_options: Mapping[str, Any] | None = None, **kwargs: Any
) -> SequenceRanker:
    """A ranker that differs from the others in its sequence encoder alone.

    Args:
        system: One of ``SYSTEMS``.
        encoder_options: Arguments of that system's encoder.
        **kwargs: Arguments of ``SequenceRanker``.

    Raises:
        ValueError: for an unknown system or option.

    >>> comparison_ranker("hstu", {"dialect": "dlrm_v3"}, dim=64).encoder.dialect
    'dlrm_v3'
    """
    encoder = comparison_encoder(system, encoder_options, dtype=kwargs.get("dtype"), name="encoder")
    return SequenceRanker(encoder, **kwargs)
