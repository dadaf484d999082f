"""Hyperparameters of a training run, checked before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TrainingSettings:
    """What can be set about the model and its training.

    The paper gives d = 128, w = 10, M = 2, Adagrad and Adam(0.9, 0.9999); it gives no learning
    rates, regularisation or number of epochs.

    Attributes:
        batch_size: Requests per step.
        epochs: Passes over the training files.
        dense_learning_rate: Adam's, for the tower.
        table_learning_rate: Adagrad's, for the embedding tables.
        table_initial_accumulator: Adagrad's first sum of squares; above 0.
        table_init_scale: Initial embeddings are uniform in +- this.
        final_rate: Both learning rates fall linearly, file by file, to this fraction; 1 keeps them.
        weight_decay: Decoupled decay of the dense weights per unit of learning rate.
        dropout: Rate inside the tower, [0, 1).
        dim: Width d of the encoder's tokens.
        segment_size: Events per segment, w.
        num_layers: GSTA layers, M.
        num_recent_segments: Segments that reach the mixer unmerged, R.
        num_tokens: RankMixer's tokens; divides ``mixer_dim``.
        mixer_dim: Width of RankMixer's tokens together with ``num_tokens`` heads.
        mixer_blocks: RankMixer's blocks.
        seed: Of initial values, order of the data and dropout.
        shuffle_buffer: Requests among which a file's order is shuffled.
        checkpoint_files: Training files between two checkpoints within an epoch; one more is
            always written at the end of an epoch.

    Example:
        >>> TrainingSettings.from_dict({"epochs": 2}).epochs
        2
    """

    batch_size: int = 128
    epochs: int = 1
    dense_learning_rate: float = 2e-3
    table_learning_rate: float = 0.05
    table_initial_accumulator: float = 1e-3
    table_init_scale: float = 0.05
    final_rate: float = 0.1
    weight_decay: float = 0.0
    dropout: float = 0.0
    dim: int = 128
    segment_size: int = 10
    num_layers: int = 2
    num_recent_segments: int = 5
    num_tokens: int = 16
    mixer_dim: int = 128
    mixer_blocks: int = 2
    seed: int = 17
    shuffle_buffer: int = 8192
    checkpoint_files: int = 64

    def __post_init__(self) -> None:
        for name in ("dense_learning_rate", "table_learning_rate", "table_initial_accumulator"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "a number above 0")
        for name in ("table_init_scale", "weight_decay"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _check("final_rate", self.final_rate, 0 <= self.final_rate <= 1, "within 0 and 1")
        _check("dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and below 1")
        may_be_zero = {"seed", "num_layers"}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and field.name not in may_be_zero:
                _check(field.name, value, value >= 1, "1 or more")
        _check("seed", self.seed, 0 <= self.seed < 2**31, "within 0 and 2147483647")
        _check(
            "mixer_dim",
            self.mixer_dim,
            self.mixer_dim % self.num_tokens == 0,
            f"a multiple of num_tokens ({self.num_tokens})",
        )
        _check(
            "num_tokens",
            self.num_tokens,
            self.num_tokens > self.num_recent_segments + 2,
            f"above num_recent_segments + 2 ({self.num_recent_segments + 2}), the encoder's tokens",
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """Check names and types of a mapping, for instance one read from a configuration file.

        Raises:
            ValueError: Says which setting is unknown or unfit, what was given and what is expected.
        """
        known = {field.name: field.type for field in fields(cls)}
        checked: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"unknown training setting {name!r}; known are {sorted(known)}")
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if known[name] == "int":
                _check(name, value, is_number and value == int(value), "an integer")
                checked[name] = int(value)
            else:
                _check(name, value, is_number, "a number")
                checked[name] = float(value)
        return cls(**checked)

    def to_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return asdict(self)


def _check(name: str, value: object, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(f"training setting {name!r} is {value!r}; expected {expected}")
