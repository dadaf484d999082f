"""The settings of a comparison (a YAML file), checked before any work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from tfx_pipeline.errors import SettingsError
from tfx_pipeline.settings.model_settings import ModelSettings, Options
from tfx_pipeline.settings.section import CONFIG, Integer, check, empty_is_default
from tfx_pipeline.settings.training_settings import TrainingSettings

ORACLE = "oracle_features"
"""A system without a network: boosted trees on counts of the history, see ``oracle_features``."""


_FILE_NAME = re.compile(r"[\w+-]([\w+. -]{0,58}[\w+-])?")
_UNUSED = (
    "calibration",
    "evaluate_files",
    "evaluate_steps",
    "feature_hosts",
    "open_tables",
    "patience",
    "transmission",
)
"""Settings of a pipeline's training that would change its model and that no comparison follows."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SystemSettings:
    """Settings of one system that override the shared ones."""

    model: Options = Field(default_factory=dict, description="entries of section `model`")
    training: Options = Field(default_factory=dict, description="entries of section `training`")
    length: Integer | None = Field(
        default=None, ge=1, description="newest events of the history that it sees"
    )
    seeds: tuple[Integer, ...] | None = Field(
        default=None, description="those of the seeds that it trains with, where all take too long"
    )


def _named(value: object) -> object:
    """A list of names stands for systems of these names without further settings."""
    if isinstance(value, (list, tuple)):
        if len(set(map(str, value))) < len(value):
            raise ValueError("names a system twice")
        return {str(name): {} for name in value}
    if isinstance(value, Mapping):
        return {name: empty_is_default(entry) for name, entry in value.items()}
    return value


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CompareSettings:
    """Systems, seeds and shared settings of a comparison.

    Raises:
        ValueError: An entry is unknown, missing or does not fit.
    """

    name: str = Field(description="of the comparison, for people")
    systems: Annotated[dict[str, SystemSettings], BeforeValidator(_named)] = Field(
        description="systems by a name of your choice; an entry without `model.system` takes its "
        "name for it. A list of names will do"
    )
    baseline: str = Field(description="the system that the others are compared with")
    seeds: tuple[Integer, ...] = Field(
        default=(1, 2, 3, 4, 5),
        description="training seeds; every system is trained with each, unless it names some",
    )
    length: Integer = Field(
        default=1000, ge=1, description="newest events of the history that a system sees"
    )
    model: Options = Field(default_factory=dict, description="section `model` of all systems")
    training: Options = Field(default_factory=dict, description="section `training` of all systems")
    bootstrap: Integer = Field(
        default=300, ge=20, description="resamples of users and seeds behind an interval"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if not self.systems:
            raise ValueError("systems is empty; name at least one")
        for name in self.systems:
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(
                    f"a system is called {name!r}, and files are named after it; use letters, "
                    "digits, '_', '-', '+', '.' and spaces within, at most 60"
                )
        if self.baseline not in self.systems:
            raise ValueError(
                f"baseline is {self.baseline!r}; should be one of the systems {list(self.systems)}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}; should hold different numbers")
        for name, own in self.systems.items():
            if own.seeds is None:
                continue
            wrong = not own.seeds or len(set(own.seeds)) < len(own.seeds)
            if wrong or not set(own.seeds) <= set(self.seeds):
                raise ValueError(
                    f"system {name!r}: seeds is {list(own.seeds)}; should be some of "
                    f"{list(self.seeds)}"
                )
        return self


@plain_dataclass(frozen=True)
class Run:
    """One training of one system.

    Attributes:
        name: The system's name in the file.
        seed: Training seed.
        model: None for ``ORACLE``.
        training: With the seed in it.
        length: Newest events of the history.
    """

    name: str
    seed: int
    model: ModelSettings | None
    training: TrainingSettings
    length: int

    @property
    def key(self) -> str:
        """Names the run's files."""
        return f"{self.name}-{self.seed}"


def runs_of(settings: CompareSettings) -> list[Run]:
    """All runs of a comparison, seed after seed, so that early results compare all systems.

    Raises:
        SettingsError: A system's settings do not fit; the first words name it.
    """
    made = []
    for name, own in settings.systems.items():
        values = {"system": name, **settings.model, **own.model}
        where = f"system {name!r} of {settings.name!r}"
        model = None
        if values["system"] == ORACLE:
            _check_oracle(own, where)
        else:
            model = check(ModelSettings, values, f"{where}, section model")
        training = check(
            TrainingSettings, {**settings.training, **own.training}, f"{where}, section training"
        )
        if "seed" in {**settings.training, **own.training}:
            raise SettingsError(f"{where}: training.seed is given; list seeds under `seeds`")
        if len(training.labels) > 1:
            raise SettingsError(
                f"{where}: training.labels holds several; systems are compared by "
                "the feature spec's first label alone"
            )
        for unused in _UNUSED:
            if getattr(training, unused) != getattr(TrainingSettings(), unused):
                raise SettingsError(
                    f"{where}: training.{unused} is given, which a comparison has no use for: it "
                    "trains on one joined log with rows that are known before, to the end, and "
                    "scores as trained; leave it out"
                )
        seeds = settings.seeds if own.seeds is None else own.seeds
        made.append((name, model, training, own.length or settings.length, seeds))
    return [
        Run(name, seed, model, _with_seed(training, seed), length)
        for seed in settings.seeds
        for name, model, training, length, seeds in made
        if seed in seeds
    ]


def _check_oracle(own: SystemSettings, where: str) -> None:
    unused = [f"model.{each}" for each in own.model if each != "system"]
    unused += [f"training.{each}" for each in own.training]
    if unused:
        raise SettingsError(
            f"{where}: {', '.join(unused)} is given, which {ORACLE} has no use for: it is no "
            "network, and takes `length` and `seeds` alone"
        )


def _with_seed(training: TrainingSettings, seed: int) -> TrainingSettings:
    values: dict[str, Any] = {**vars(training), "seed": seed}
    values = {name: value for name, value in values.items() if not name.startswith("__")}
    return check(TrainingSettings, values, "seeds")
