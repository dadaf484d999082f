"""What a trainer asks a feature host for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class StreamOrder:
    """The batches of one shard, in the order that a file of Examples would give.

    Equal orders are answered with equal batches, whichever host answers.

    Attributes:
        split: Name of the split.
        shard: Number of the shard within the log.
        batch_size: Requests per batch.
        shuffle_buffer: Requests among which the order is shuffled.
        seed: Of the shuffled order; None keeps the order of time.
        first: Batches to leave out at the beginning.

    Raises:
        ValueError: A part is not what it should be.
    """

    split: str
    shard: int
    batch_size: int
    shuffle_buffer: int
    seed: int | None = None
    first: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.split, str):
            raise ValueError(f"split is {self.split!r}; give the name of a split")
        for name, least in (("shard", 0), ("batch_size", 1), ("shuffle_buffer", 1), ("first", 0)):
            _check(name, getattr(self, name), least)
        if self.seed is not None:
            _check("seed", self.seed, 0)

    @classmethod
    def from_json(cls, content: Any) -> StreamOrder:
        """From parsed JSON.

        Raises:
            ValueError: A part is missing, unknown, or not what it should be.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(content, dict) or set(content) != set(names):
            raise ValueError(f"an order is a JSON object of {', '.join(names)}")
        return cls(**content)


def _check(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
        raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")
