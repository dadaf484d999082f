"""Every public layer with small arguments and inputs, for the tests that all must pass."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

import laser_keras


@dataclass(frozen=True)
class Case:
    make: Callable[..., keras.layers.Layer]
    inputs: dict[str, np.ndarray]
    """Arguments of the call by name; tensors, or mappings of tensors."""
    output_shape: Any
    trains: bool = True
    masked_by: dict[str, str] = field(default_factory=dict)
    """Which inputs are padded, and the mask's name."""
    searches: bool = False
    """Keeps the events of the highest scores: rounding may decide between two near ones."""
    untrained: tuple[str, ...] = ()
    """Beginnings of the names of weights that the outputs have no gradient to, by design."""
    whole_shape: bool = False
    """The first axis is not the batch: the layer needs it known."""


def _cases() -> dict[str, Case]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype("float32")

    target, history = normal(3, 2, 8), normal(3, 11, 8)
    mask = np.arange(11) < np.array([[11], [5], [0]])
    sequence = {"target": target, "history": history, "mask": mask}
    padded = {"history": "mask"}
    ages = np.sort(rng.integers(0, 10**6, (3, 11)), axis=1).astype("int32")
    sta = {"key_dim": 3, "segment_size": 4}
    segments = {"target": target, "history": normal(3, 2, 3, 8)}
    segments["mask"] = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    return {
        "SegmentedTargetAttention": Case(
            lambda **k: laser_keras.SegmentedTargetAttention(**sta, **k),
            sequence,
            (3, 2, 3, 8),
            masked_by=padded,
        ),
        "SegmentedTargetAttention_all_options": Case(
            lambda **k: laser_keras.SegmentedTargetAttention(
                **sta,
                gamma="learned",
                gate_bias=-1.0,
                use_bias=True,
                norm="pre",
                activation="relu",
                dropout=0.5,
                implementation="project",
                **k,
            ),
            {**sequence, "similarity": normal(3, 2, 11, 2)},
            (3, 2, 3, 8),
            masked_by=padded,
        ),
        "GlobalStackedTargetAttention": Case(
            lambda **k: laser_keras.GlobalStackedTargetAttention(**k), segments, (3, 2, 8)
        ),
        "GlobalStackedTargetAttention_shared": Case(
            lambda **k: laser_keras.GlobalStackedTargetAttention(3, 1, 0.5, "project", **k),
            sequence,
            (3, 2, 8),
            masked_by=padded,
        ),
        "GlobalStackedTargetAttention_options": Case(
            lambda **k: laser_keras.GlobalStackedTargetAttention(
                norm="pre", ffn_expansion=2, epsilon=1e-5, **k
            ),
            segments,
            (3, 2, 8),
        ),
        "MultiResolutionFusion": Case(
            lambda **k: laser_keras.MultiResolutionFusion(2, **k), segments, (3, 2, 4, 8), False
        ),
        "LaserEncoder": Case(
            lambda **k: laser_keras.LaserEncoder(**sta, num_recent_segments=2, **k),
            sequence,
            (3, 2, 4, 8),
            masked_by=padded,
        ),
        "LaserEncoder_oldest_first": Case(
            lambda **k: laser_keras.LaserEncoder(
                **sta,
                num_recent_segments=0,
                order="oldest_first",
                gate="softmax",
                gate_bias=None,  # a softmax does not see an offset
                stacked_norm="post",
                stacked_ffn_expansion=2,
                **k,
            ),
            {**sequence, "similarity": normal(3, 2, 11, 1)},
            (3, 2, 2, 8),
            masked_by=padded,
        ),
        "TargetAttention": Case(
            lambda **k: laser_keras.TargetAttention(**k), sequence, (3, 2, 8), masked_by=padded
        ),
        "TargetAttention_options": Case(
            lambda **k: laser_keras.TargetAttention(2, 3, "sigmoid", "project", 5, **k),
            sequence,
            (3, 2, 10),
            masked_by=padded,
        ),
        "ActivationUnitAttention": Case(
            lambda **k: laser_keras.ActivationUnitAttention((4, 3), **k),
            sequence,
            (3, 2, 8),
            masked_by=padded,
        ),
        "Dice": Case(
            lambda **k: laser_keras.Dice(**k), {"inputs": history, "mask": mask}, (3, 11, 8)
        ),
        "DINEncoder": Case(
            lambda **k: laser_keras.DINEncoder(**k), sequence, (3, 2, 1, 8), masked_by=padded
        ),
        "DINEncoder_unit": Case(
            lambda **k: laser_keras.DINEncoder(
                "activation_unit", 2, (4,), "relu", "softmax", "oldest_first", **k
            ),
            sequence,
            (3, 2, 1, 8),
            masked_by=padded,
        ),
        "TransformerEncoder": Case(
            lambda **k: laser_keras.TransformerEncoder(**k),
            sequence,
            (3, 2, 1, 8),
            masked_by=padded,
        ),
        "TransformerEncoder_options": Case(
            lambda **k: laser_keras.TransformerEncoder(
                2, 2, 2, False, recent_events=6, mode="parallel", **k
            ),
            sequence,
            (3, 2, 2, 8),
            masked_by=padded,
        ),
        "HSTUEncoder": Case(
            lambda **k: laser_keras.HSTUEncoder(**k), sequence, (3, 2, 1, 8), masked_by=padded
        ),
        "HSTUEncoder_time": Case(
            lambda **k: laser_keras.HSTUEncoder(2, order="oldest_first", dropout=0.5, **k),
            {**sequence, "age": ages},
            (3, 2, 1, 8),
            masked_by={**padded, "age": "mask"},
        ),
        "HSTUEncoder_options": Case(
            lambda **k: laser_keras.HSTUEncoder(2, 2, "dlrm_v3", "target_position", "length", **k),
            {**sequence, "age": ages},
            (3, 2, 1, 8),
            masked_by={**padded, "age": "mask"},
        ),
        "TWINEncoder": Case(
            lambda **k: laser_keras.TWINEncoder(4, 2, 3, **k),
            sequence,
            (3, 2, 2, 8),
            masked_by=padded,
            searches=True,
        ),
        "TWINEncoder_cross": Case(
            lambda **k: laser_keras.TWINEncoder(4, 2, 3, "oldest_first", **k),
            {**sequence, "cross": normal(3, 11, 3, 2)},
            (3, 2, 2, 8),
            masked_by={**padded, "cross": "mask"},
            searches=True,
        ),
        "SIMEncoder": Case(
            lambda **k: laser_keras.SIMEncoder("soft", 4, 2, 3, **k),
            sequence,
            (3, 2, 2, 8),
            masked_by=padded,
            searches=True,
            untrained=("target_kernel", "event_kernel", "click"),
        ),
        "SIMEncoder_hard": Case(
            lambda **k: laser_keras.SIMEncoder("hard", 4, 2, 3, "oldest_first", **k),
            {**sequence, "category_match": rng.random((3, 2, 11)) < 0.5},
            (3, 2, 2, 8),
            masked_by={**padded, "category_match": "mask"},
        ),
        "SoftSearch": Case(
            lambda **k: laser_keras.SoftSearch(4, 3, (5,), **k),
            sequence,
            ((3, 2, 4), (3, 2, 4), (3, 2)),
            masked_by=padded,
            searches=True,
        ),
        "HardSearch": Case(
            lambda **k: laser_keras.HardSearch(4, **k),
            {"category_match": rng.random((3, 2, 11)) < 0.5, "mask": mask},
            ((3, 2, 4), (3, 2, 4)),
            trains=False,
            masked_by={"category_match": "mask"},
        ),
        "RandomSuffix": Case(
            lambda **k: laser_keras.RandomSuffix(2, seed=1, **k),
            {"valid": mask},
            (3, 11),
            trains=False,
        ),
        "STCAEncoder": Case(
            lambda **k: laser_keras.STCAEncoder(2, 2, 2, **k),
            sequence,
            (3, 2, 1, 8),
            masked_by=padded,
        ),
        "STCAEncoder_options": Case(
            lambda **k: laser_keras.STCAEncoder(2, 2, 2, "absorb", False, "oldest_first", **k),
            sequence,
            (3, 2, 1, 8),
            masked_by=padded,
        ),
        "LONGEREncoder": Case(
            lambda **k: laser_keras.LONGEREncoder(2, 3, 1, 2, 2, **k),
            {**sequence, "global_features": normal(3, 2, 5)},
            (3, 2, 3, 8),
            masked_by=padded,
        ),
        "LONGEREncoder_plain": Case(
            lambda **k: laser_keras.LONGEREncoder(3, 2, 0, 2, 2, 0, 0, 4, "oldest_first", **k),
            sequence,
            (3, 2, 2, 8),
            masked_by=padded,
        ),
        "SwiGLUFeedForward": Case(
            lambda **k: laser_keras.SwiGLUFeedForward(2, 5, **k), {"inputs": history}, (3, 11, 5)
        ),
        "PoolingEncoder": Case(
            lambda **k: laser_keras.PoolingEncoder(**k),
            sequence,
            (3, 2, 1, 8),
            trains=False,
            masked_by=padded,
        ),
        "CombinedEncoder": Case(
            lambda **k: laser_keras.CombinedEncoder(
                [
                    laser_keras.HSTUEncoder(dtype=k.get("dtype")),
                    laser_keras.SIMEncoder("hard", 4, 2, 3, dtype=k.get("dtype")),
                    laser_keras.PoolingEncoder(3, dtype=k.get("dtype")),
                ],
                **k,
            ),
            {**sequence, "age": ages, "category_match": rng.random((3, 2, 11)) < 0.5},
            (3, 2, 4, 8),
            masked_by={**padded, "age": "mask", "category_match": "mask"},
        ),
        "FeatureMLP": Case(
            lambda **k: laser_keras.FeatureMLP(4, dropout=0.5, **k),
            {"inputs": {"a": normal(3, 9), "b": normal(3, 5)}},
            (3, 4),
        ),
        "FeedForward": Case(
            lambda **k: laser_keras.FeedForward(2, "relu", 0.5, **k),
            {"inputs": history},
            (3, 11, 8),
        ),
        "RankMixer": Case(
            lambda **k: laser_keras.RankMixer(4, 8, dropout=0.5, **k),
            {"inputs": normal(3, 2, 9)},
            (3, 2, 8),
        ),
        "RankMixer_sparse": Case(
            lambda **k: laser_keras.RankMixer(4, 8, num_experts=2, **k),
            {"inputs": normal(3, 2, 9)},
            (3, 2, 8),
        ),
        "RankMixer_groups": Case(
            lambda **k: laser_keras.RankMixer(dim=8, groups={"b": 3, "a": 1}, norm="pre", **k),
            {"inputs": {"a": normal(3, 9), "b": normal(3, 5)}},
            (3, 8),
        ),
        "PerTokenFeedForward": Case(
            lambda **k: laser_keras.PerTokenFeedForward(2, dropout=0.5, **k),
            {"inputs": history},
            (3, 11, 8),
            whole_shape=True,
        ),
        "PerTokenMixtureOfExperts": Case(
            lambda **k: laser_keras.PerTokenMixtureOfExperts(2, 2, **k),
            {"inputs": history},
            (3, 11, 8),
            whole_shape=True,
        ),
        "RecencyEmbedding": Case(
            lambda **k: laser_keras.RecencyEmbedding(4, 20, 2, **k),
            {"age": rng.integers(0, 10**6, (3, 11)).astype("int32")},
            (3, 11, 4),
        ),
        "SequenceTokenizer": Case(
            lambda **k: laser_keras.SequenceTokenizer(6, **k),
            {
                "history": history,
                "target": target,
                "age": rng.integers(0, 10**6, (3, 11)).astype("int32"),
                "mask": mask,
            },
            {"history": (3, 11, 6), "target": (3, 2, 6)},
            masked_by=padded,
        ),
        "SequenceTokenizer_tables": Case(
            lambda **k: laser_keras.SequenceTokenizer(
                6, {"item": (20, 4)}, ["image"], recency="concat", **k
            ),
            {
                "history": {
                    "item": rng.integers(0, 20, (3, 11)).astype("int32"),
                    "image": normal(3, 11, 3),
                },
                "target": {
                    "item": rng.integers(0, 20, (3, 2)).astype("int32"),
                    "image": normal(3, 2, 3),
                },
                "age": rng.integers(0, 10**6, (3, 11)).astype("int32"),
            },
            {"history": (3, 11, 6), "target": (3, 2, 6), "similarity": (3, 2, 11, 1)},
        ),
        "LaserRanker": Case(
            lambda **k: laser_keras.LaserRanker(
                dim=8, **sta, num_recent_segments=2, num_tokens=8, mixer_dim=16, dropout=0.5, **k
            ),
            {
                "inputs": {
                    "history": normal(3, 11, 6),
                    "history_mask": mask,
                    "history_age": rng.integers(0, 10**6, (3, 11)).astype("int32"),
                    "target": normal(3, 2, 5),
                    "candidate": normal(3, 2, 2),
                    "context": normal(3, 3),
                    "similarity": normal(3, 2, 11, 1),
                }
            },
            (3, 2),
        ),
    }


CASES = _cases()
