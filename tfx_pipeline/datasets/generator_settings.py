"""Preset, size and seed of a generated log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfx_pipeline.datasets.generated_items import NICHES
from tfx_pipeline.errors import DatasetError

_LONG = {
    "users": 500,
    "min_events": 2500,
    "max_events": 6000,
    "requests": 10_000,
    "max_history": 4000,
}
PRESETS: dict[str, dict[str, int]] = {"demo": {}, "long": _LONG, "counts": _LONG, "presence": _LONG}
"""Sizes of each preset where they differ from ``GeneratorSettings``' defaults."""


@dataclass(frozen=True)
class GeneratorSettings:
    """Preset, size and seed of a generated dataset; the defaults are the demo's.

    Attributes:
        users: Number of users.
        items: Number of items.
        min_events: Shortest life cycle.
        max_events: Longest life cycle; lengths are log-uniform between the two.
        requests: Most requests to keep; they lie in the last days.
        candidates: Items on a page, N.
        max_history: The spec's history length.
        seed: Equal settings give equal tables.
        preset: ``demo``, ``long``, ``counts`` or ``presence``, see ``demo_log`` and ``long_log``.

    Raises:
        DatasetError: A number is out of range, or there is no such preset.

    Example:
        >>> GeneratorSettings.of_preset("long", seed=3).max_history
        4000
    """

    users: int = 1500
    items: int = 20_000
    min_events: int = 50
    max_events: int = 4000
    requests: int = 20_000
    candidates: int = 10
    max_history: int = 1000
    seed: int = 7
    preset: str = "demo"

    def __post_init__(self) -> None:
        for name in ("users", "items", "min_events", "requests", "candidates", "max_history"):
            if getattr(self, name) < 1:
                raise DatasetError(f"generator: {name} is {getattr(self, name)}; give at least 1")
        if self.max_events < self.min_events:
            raise DatasetError(
                f"generator: max_events is {self.max_events}, below min_events {self.min_events}"
            )
        if self.items < NICHES:
            raise DatasetError(f"generator: items is {self.items}; give at least {NICHES}")
        if self.preset not in PRESETS:
            raise DatasetError(
                f"generator: preset is {self.preset!r}; give one of {', '.join(PRESETS)}"
            )

    @classmethod
    def of_preset(cls, preset: str, **given: int) -> GeneratorSettings:
        """The sizes of a preset, with those that are given in their place."""
        sizes: Mapping[str, Any] = PRESETS.get(preset, {})
        return cls(**{**sizes, **given, "preset": preset})
