"""Multiply-accumulates of one request, by the counts of ``laser_keras.complexity``."""

from __future__ import annotations

from typing import Any

import keras

from laser_keras import complexity
from laser_keras.encoders.combined_encoder import CombinedEncoder
from laser_keras.encoders.din_encoder import DINEncoder
from laser_keras.encoders.hstu_encoder import HSTUEncoder
from laser_keras.encoders.laser_encoder import LaserEncoder
from laser_keras.encoders.longer_encoder import LONGEREncoder
from laser_keras.encoders.pooling_encoder import PoolingEncoder
from laser_keras.encoders.sim_encoder import SIMEncoder
from laser_keras.encoders.stca_encoder import STCAEncoder
from laser_keras.encoders.transformer_encoder import TransformerEncoder
from laser_keras.encoders.twin_encoder import TWINEncoder
from tfx_pipeline.training.tower import Tower
from tfx_pipeline.training.tower_inputs import tower_widths


def request_macs(tower: Tower, candidates: int, length: int) -> dict[str, int]:
    """MACs of one request through a tower's encoder and mixer.

    Softmax, pooling, selection, the tokenizer and the heads are not counted: they cost every
    system the same, or next to nothing.
    """
    encoder, settings = tower.model.encoder, tower.settings
    found = {"encoder": encoder_macs(encoder, candidates, length, settings.dim)}
    if settings.mixer == "rankmixer":
        experts = max(1, int(settings.mixer_options.get("num_experts", 0)))
        each = complexity.rank_mixer_macs(
            settings.num_tokens, settings.mixer_dim, settings.mixer_blocks, settings.mixer_expansion
        )
        found["mixer"] = candidates * each * experts
    else:
        widths = tower_widths(tower.spec)
        width = encoder.num_output_tokens * settings.dim + sum(
            widths.get(name, 0) for name in ("target", "candidate", "context")
        )
        each = complexity.mlp_macs(width, settings.mixer_dim, settings.mixer_blocks)
        found["mixer"] = candidates * each
    return found


def encoder_macs(encoder: keras.layers.Layer, candidates: int, length: int, width: int) -> int:
    """MACs of one request through one encoder, executed as the encoder would.

    Raises:
        TypeError: for an encoder that the counts do not know.
    """
    sizes: dict[str, Any] = {"candidates": candidates, "length": length, "width": width}
    if isinstance(encoder, CombinedEncoder):
        return sum(
            encoder_macs(part, candidates, min(length, limit or length), width)
            for part, limit in zip(encoder.encoders, encoder.recent_events, strict=True)
        )
    if isinstance(encoder, LaserEncoder):
        return sum(complexity.encoder_macs(encoder, candidates, length, width).values())
    if isinstance(encoder, DINEncoder):
        units = tuple(encoder.hidden_units) if encoder.unit == "activation_unit" else ()
        return complexity.din_macs(**sizes, hidden_units=units, implementation="auto")
    if isinstance(encoder, PoolingEncoder):
        return 0
    if isinstance(encoder, TWINEncoder):
        return complexity.twin_macs(
            **sizes, top_k=encoder.top_k, recent=encoder.recent_events, implementation="auto"
        )
    if isinstance(encoder, SIMEncoder):
        return complexity.sim_macs(
            **sizes,
            search=encoder.search,
            top_k=encoder.top_k,
            recent=encoder.recent_events,
            implementation="auto",
        )
    if isinstance(encoder, HSTUEncoder):
        return complexity.hstu_macs(
            **sizes,
            num_layers=encoder.num_layers,
            dialect=encoder.dialect,
            implementation="auto",
        )
    if isinstance(encoder, TransformerEncoder):
        sizes["length"] = min(length, encoder.recent_events or length)
        return complexity.self_attention_macs(
            **sizes,
            num_layers=encoder.num_layers,
            ffn_expansion=encoder.ffn_expansion,
            append_target=encoder.append_target,
            implementation="auto",
        )
    if isinstance(encoder, STCAEncoder):
        return complexity.stca_macs(
            **sizes,
            num_layers=encoder.num_layers,
            num_heads=encoder.num_heads,
            ffn_expansion=encoder.ffn_expansion,
        )
    if isinstance(encoder, LONGEREncoder):
        return round(
            complexity.longer_macs(
                **sizes,
                merge_size=encoder.merge_size,
                num_queries=encoder.num_queries,
                num_layers=encoder.num_layers,
                ffn_expansion=encoder.ffn_expansion,
                inner_layers=encoder.inner_layers,
                num_learned_tokens=encoder.num_learned_tokens,
            )
        )
    raise TypeError(f"no count for {type(encoder).__name__}; add one to laser_keras.complexity")
