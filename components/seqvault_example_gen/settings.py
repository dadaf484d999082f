"""Settings of SeqVaultExampleGen, passed as the custom config of the component."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from components.seqvault_example_gen.time_range import TimeRange


@dataclass(frozen=True)
class Settings:
    """Settings of one join.

    Attributes:
        feature_spec: The spec's content, ``FeatureSpec.to_dict()``.
        store: Folder of the SeqVault, or the address of its servers as ``seqvault.connect`` takes
            it: workers on other machines need the latter.
        splits: Time range of each split.
        dead_letters: Folder for malformed impressions; ``impressions.jsonl`` is written there.
        max_bad_fraction: Share of malformed impressions above which the run fails.
        max_outside_fraction: Share of the ids of an input that lie outside its ``direct`` table
            above which the run fails.
        rows_per_file: Impressions per Examples file, about; files are the unit of parallel work.
        fingerprint: Of everything else that the Examples depend on (the code, the store's
            content, the items): a change makes the run join again instead of using the cache.
        negative_rate: Share of the train split's impressions without a click that are kept; the
            Examples artifact records it, and the served probability must be corrected by it.
    """

    feature_spec: dict[str, Any]
    store: str
    splits: dict[str, TimeRange]
    dead_letters: str
    max_bad_fraction: float
    max_outside_fraction: float
    rows_per_file: int
    fingerprint: str
    negative_rate: float = 1.0

    def __post_init__(self) -> None:
        if not self.splits:
            raise ValueError("no splits: give at least one time range, for example train and eval")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(
                f"max_bad_fraction must lie within 0 and 1; received {self.max_bad_fraction}"
            )
        if not 0 <= self.max_outside_fraction <= 1:
            raise ValueError(
                f"max_outside_fraction must lie within 0 and 1; received "
                f"{self.max_outside_fraction}"
            )
        if not 0 < self.negative_rate <= 1:
            raise ValueError(
                f"negative_rate must be above 0 and at most 1; received {self.negative_rate}"
            )
        if self.rows_per_file < 1:
            raise ValueError(f"rows_per_file must be positive; received {self.rows_per_file}")
        names = list(self.splits)
        for position, name in enumerate(names):
            for other in names[position + 1 :]:
                if self.splits[name].overlaps(self.splits[other]):
                    raise ValueError(
                        f"splits {name} ({self.splits[name]}) and {other} ({self.splits[other]}) "
                        "overlap: evaluation would see what was trained on"
                    )

    def to_json(self) -> str:
        """Text from which ``from_json`` makes an equal instance."""
        splits = {name: [part.start, part.end] for name, part in self.splits.items()}
        return json.dumps({**self.__dict__, "splits": splits})

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The inverse of ``to_json``."""
        content = json.loads(text)
        splits = {name: TimeRange(*part) for name, part in content.pop("splits").items()}
        return cls(**content, splits=splits)
