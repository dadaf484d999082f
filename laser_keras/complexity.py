"""Counts multiply-accumulates, by the paper's formulas and for the layers as implemented.

The paper's "FLOPs" are multiply-accumulates (MACs); floating-point operations are twice that.

>>> round(paper_laser() / 1e6, 2)                       # equation 18: "0.4 x 10^8"
40.14
>>> round(sum(laser_macs(candidates=1, implementation="absorb").values()) / 1e6, 2)
15.47
"""

import itertools
from collections.abc import Mapping

from laser_keras.encoders.laser_encoder import LaserEncoder
from laser_keras.layers.segmented_target_attention import SegmentedTargetAttention
from laser_keras.layers.soft_search import SoftSearch
from laser_keras.layers.target_attention import TargetAttention


def paper_laser(
    length: int = 1000,
    width: int = 128,
    key_width: int = 32,
    segment_size: int = 10,
    ffn_expansion: int = 4,
    num_layers: int = 2,
) -> float:
    """Equation 18, one candidate: ``L d^2 (1 + d_q / d + (2 r + 2 M) / w)``."""
    terms = 1 + key_width / width + (2 * ffn_expansion + 2 * num_layers) / segment_size
    return length * width**2 * terms


def paper_self_attention(length: int = 1000, width: int = 128) -> int:
    """Equation 19: ``4 L d^2 + 2 L^2 d``."""
    return 4 * length * width**2 + 2 * length**2 * width


def paper_target_attention(length: int = 1000, width: int = 128) -> int:
    """Equation 20: ``2 L d^2 + 2 L d``."""
    return 2 * length * width**2 + 2 * length * width


def paper_hstu(length: int = 1000, width: int = 128) -> int:
    """One HSTU layer, four projections and an output: ``5 L d^2 + 2 L^2 d``."""
    return 5 * length * width**2 + 2 * length**2 * width


def paper_longer_layer(length: int = 2048, width: int = 32, merge_size: int = 4) -> float:
    """Operations (two per MAC) of one LONGER layer on merged tokens, as that paper counts.

    ``24 L K d^2 + 4 L^2 d / K``; K = 1 is a plain Transformer layer with expansion 4.
    """
    return 24 * length * merge_size * width**2 + 4 * length**2 * width / merge_size


def paper_table_2(length: int = 1000, width: int = 128) -> dict[str, float]:
    """The FLOPs column of Table 2 (TWIN is not given there).

    The printed numbers follow if every self-attention system is read out by a target attention
    and the target is one more token of its sequence; Base keeps 100 events.
    """
    return {
        "Base": paper_self_attention(101, width) + paper_target_attention(101, width),
        "DIN": paper_target_attention(length, width),
        "HSTU": paper_hstu(length, width) + paper_target_attention(length, width),
        "Transformer": paper_self_attention(length + 1, width)
        + paper_target_attention(length + 1, width),
        "LASER": paper_laser(length, width),
    }


def laser_macs(
    candidates: int = 1,
    length: int = 1000,
    width: int = 128,
    num_heads: int = 2,
    key_dim: int = 16,
    segment_size: int = 10,
    ffn_expansion: int = 4,
    num_layers: int = 2,
    implementation: str = "auto",
    stacked_ffn_expansion: int = 0,
) -> dict[str, int]:
    """MACs of one request through ``LaserEncoder``, by part, in the given execution order.

    Besides the layer's orders, ``implementation="paper"`` repeats everything for each candidate
    and ``"shared"`` projects keys and values once per request but leaves GSTA as printed.

    Softmax, sigmoid, normalisation and pooling are not counted.
    """
    key_width, segments = num_heads * key_dim, -(-length // segment_size)
    shared = implementation == "shared"
    order = {"paper": "project", "shared": "project"}.get(implementation, implementation)
    layer = SegmentedTargetAttention(
        num_heads, key_dim, segment_size, ffn_expansion, implementation=order
    )
    absorb_keys, absorb_values = layer.resolve_implementation(candidates, length, width)
    repeats = candidates if implementation == "paper" else 1
    per_candidate = {"query": width * key_width}
    once = {}
    if absorb_keys:
        per_candidate["query"] += width * key_width
        per_candidate["scores"] = num_heads * length * width
    else:
        once["keys"] = length * width * key_width
        per_candidate["scores"] = length * key_width
    if absorb_values:
        per_candidate["aggregation"] = num_heads * length * width
        per_candidate["values"] = segments * width**2
    else:
        once["values"] = length * width**2
        per_candidate["aggregation"] = length * width
    per_candidate["ffn"] = 2 * ffn_expansion * segments * width**2
    if implementation in ("paper", "project") or shared:
        stacked = width**2 + 2 * segments * width**2 + 2 * segments * width
    else:
        stacked = 3 * width**2 + 2 * num_heads * segments * width
    stacked += 2 * stacked_ffn_expansion * width**2
    per_candidate["gsta"] = num_layers * stacked
    return {
        part: repeats * once.get(part, 0) + candidates * per_candidate.get(part, 0)
        for part in ("query", "keys", "scores", "values", "aggregation", "ffn", "gsta")
    }


def encoder_macs(
    encoder: LaserEncoder, candidates: int, length: int, width: int
) -> Mapping[str, int]:
    """MACs of one request through this encoder, by part.

    >>> sum(encoder_macs(LaserEncoder(), candidates=500, length=1000, width=128).values())
    6756480000
    """
    segmented = encoder.segmented_attention
    return laser_macs(
        candidates,
        length,
        width,
        segmented.num_heads,
        segmented.key_dim,
        segmented.segment_size,
        segmented.ffn_expansion,
        encoder.stacked_attention.num_layers,
        segmented.implementation,
        encoder.stacked_attention.ffn_expansion,
    )


def target_attention_macs(
    candidates: int = 1,
    length: int = 1000,
    width: int = 128,
    num_heads: int = 2,
    implementation: str = "auto",
) -> int:
    """MACs of one request through ``TargetAttention`` in the given execution order."""
    layer = TargetAttention(num_heads, implementation=implementation)
    query = candidates * width**2
    if layer.absorbs(candidates, length, width):
        return query + candidates * (2 * width**2 + 2 * num_heads * length * width)
    return query + 2 * length * width**2 + 2 * candidates * length * width


def self_attention_macs(
    candidates: int = 1,
    length: int = 1000,
    width: int = 128,
    num_layers: int = 1,
    ffn_expansion: int = 0,
    append_target: bool = True,
    implementation: str = "project",
) -> int:
    """MACs of one request through ``TransformerEncoder`` in its serial mode.

    The target's place in the sequence makes the self-attention a cost per candidate.
    ``implementation="auto"`` is what the encoder does: its read-out takes the cheaper form, and the
    first layer computes once what the events say to each other. ``"project"`` is what the papers
    count.
    """
    network = 2 * ffn_expansion * width**2
    if not append_target:
        layer = paper_self_attention(length, width) + network * length
        read_out = target_attention_macs(candidates, length, width, implementation=implementation)
        return num_layers * layer + read_out
    tokens = length + 1
    later = paper_self_attention(tokens, width) + network * tokens
    read_out = target_attention_macs(1, tokens, width, implementation=implementation)
    if implementation == "project":
        return candidates * (num_layers * later + read_out)
    among_events = 3 * length * width**2 + 2 * length**2 * width
    with_target = (3 + tokens) * width**2 + 3 * length * width + network * tokens
    first = among_events + candidates * with_target
    return first + candidates * ((num_layers - 1) * later + read_out)


def hstu_macs(
    candidates: int = 1,
    length: int = 1000,
    width: int = 128,
    num_layers: int = 1,
    dialect: str = "research",
    implementation: str = "project",
) -> int:
    """MACs of one request through ``HSTUEncoder`` with a target attention as read-out."""
    output = 1 if dialect == "research" else 3
    layer = (4 + output) * length * width**2 + 2 * length**2 * width
    read_out = target_attention_macs(candidates, length, width, implementation=implementation)
    return num_layers * layer + read_out


def din_macs(
    candidates: int = 1,
    length: int = 1000,
    width: int = 128,
    hidden_units: tuple[int, ...] = (),
    implementation: str = "project",
) -> int:
    """MACs of one request through ``DINEncoder``.

    Without ``hidden_units`` the target attention; with them the activation unit, whose first
    layer's event part is computed once and only its product part per pair.
    """
    if not hidden_units:
        return target_attention_macs(candidates, length, width, implementation=implementation)
    first = hidden_units[0]
    sizes = [*hidden_units, 1]
    later = sum(a * b for a, b in itertools.pairwise(sizes))
    pair = width * first + later + width  # the product term, the other layers, the weighted sum
    return length * width * first + candidates * (width * first + length * pair)


def twin_macs(
    candidates: int = 1,
    length: int = 1000,
    width: int = 128,
    top_k: int = 100,
    recent: int = 50,
    implementation: str = "project",
) -> int:
    """MACs of one request through ``TWINEncoder`` without cross features, selection not counted."""
    search = length * width**2 + candidates * (width**2 + length * width)
    kept, newest = min(top_k, length), min(recent, length)
    attention = candidates * (kept * width**2 + kept * width + width**2)
    return search + attention + din_macs(candidates, newest, width, (), implementation)


def sim_macs(
    candidates: int = 1,
    length: int = 1000,
    width: int = 128,
    search: str = "soft",
    top_k: int = 100,
    recent: int = 50,
    implementation: str = "project",
    training: bool = False,
) -> int:
    """MACs of one request through ``SIMEncoder``, selection not counted.

    ``training`` adds the soft search's click network, which no output needs.
    """
    macs = 0
    if search == "soft":
        macs += length * width**2 + candidates * (width**2 + length * width)
        if training:
            sizes = (2 * width, *SoftSearch().hidden_units, 1)
            network = sum(a * b for a, b in itertools.pairwise(sizes))
            macs += candidates * (length * width + network)
    kept, newest = min(top_k, length), min(recent, length)
    # Each candidate has events of its own: nothing is shared, so its keys and values are absorbed.
    long_term = target_attention_macs(1, kept, width, implementation="absorb")
    return macs + candidates * long_term + din_macs(candidates, newest, width, (), implementation)


def stca_macs(
    candidates: int = 1,
    length: int = 1000,
    width: int = 128,
    num_layers: int = 2,
    num_heads: int = 4,
    ffn_expansion: int = 4,
    implementation: str = "auto",
) -> int:
    """MACs of one request through ``STCAEncoder``: encodings once, reading per candidate."""
    network = 3 * ffn_expansion * width**2
    read = target_attention_macs(candidates, length, width, num_heads, implementation)
    layers = num_layers * (length * network + read + candidates * (network + width**2))
    fusions = sum(candidates * (i + 2) * width**2 for i in range(num_layers))
    return layers + fusions + candidates * network


def longer_macs(
    candidates: int = 1,
    length: int = 1000,
    width: int = 128,
    merge_size: int = 4,
    num_queries: int = 100,
    num_layers: int = 2,
    ffn_expansion: int = 4,
    inner_layers: int = 1,
    num_learned_tokens: int = 1,
) -> int:
    """MACs of one request through ``LONGEREncoder`` without ``global_features``."""
    tokens, wide = -(-length // merge_size), merge_size * width
    padded, queries = tokens * merge_size, min(num_queries, tokens)
    learned = num_learned_tokens
    inner = padded * ((4 + 2 * ffn_expansion) * width**2 + 2 * merge_size * width)
    macs = inner_layers * inner
    sources = tokens
    for _ in range(num_layers + 1):
        user_keys = 2 * (sources + learned) * wide**2
        finish = (2 + 2 * ffn_expansion) * wide**2  # queries, output, feed-forward
        of_history = queries * (finish + 2 * sources * wide)
        of_learned = learned * (finish + 2 * (sources + learned) * wide)
        of_target = finish + 2 * wide**2 + 2 * (sources + learned + 1) * wide
        macs += user_keys + of_history + of_learned + candidates * of_target
        sources = queries
    views = 3 if learned else 2
    return macs + candidates * (1 + views) * width * wide


def rank_mixer_macs(
    num_tokens: int = 16, dim: int = 768, num_blocks: int = 2, ffn_expansion: int = 4
) -> int:
    """MACs of one sample through the blocks of RankMixer, equal to their number of parameters."""
    return 2 * ffn_expansion * num_blocks * num_tokens * dim**2


def mlp_macs(input_width: int, dim: int = 128, num_layers: int = 2) -> int:
    """MACs of one sample through ``FeatureMLP``, equal to the size of its kernels."""
    return input_width * dim + (num_layers - 1) * dim**2
