"""The configuration of a pipeline run: a YAML file of settings and four folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from components.uris import scheme_of
from laser_features import FeatureSpec
from seqvault.service.address import is_address
from tfx_pipeline.datasets import PreparedDataset
from tfx_pipeline.errors import DatasetError, PipelineError
from tfx_pipeline.settings.pipeline_settings import LOCAL_BEAM_ARGS, PipelineSettings
from tfx_pipeline.settings.read_yaml import read_yaml
from tfx_pipeline.settings.section import CONFIG, check, plain

__all__ = [
    "CONFIGS",
    "LOCAL_BEAM_ARGS",
    "HTML_REPORT",
    "REPORT",
    "PipelineConfig",
    "load_config",
    "with_training",
]

REPORT = "last_run.json"
HTML_REPORT = "last_run.html"
CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class PipelineConfig(PipelineSettings):
    """The input of ``create_pipeline``: settings and folders.

    Attributes:
        dataset: Folder of a prepared dataset.
        store: Folder of its SeqVault, or the address of its servers (see ``seqvault.connect``).
        work: Folder for artifacts, metadata, dead letters and pushed models.
    """

    dataset: Path = Field()
    store: str = Field()
    work: Path = Field()

    @property
    def metadata(self) -> Path:
        """The SQLite file of ML Metadata."""
        return self.work / "metadata.sqlite"

    @property
    def serving(self) -> Path | str:
        """Base path of the pushed model, or its URI: one folder per version."""
        if scheme_of(self.push_to) is not None:
            return self.push_to.rstrip("/")
        return Path(self.push_to).resolve() if self.push_to else self.work / "serving" / self.name

    @property
    def recall_name(self) -> str:
        """Name of the served recall model."""
        return f"{self.name}_recall"

    @property
    def recall_serving(self) -> Path | str:
        """Base path of the pushed recall model, beside the ranker's, or its URI."""
        if isinstance(self.serving, Path):
            return self.serving.with_name(f"{self.serving.name}_recall")
        return f"{self.serving}_recall"

    def load_spec(self) -> FeatureSpec:
        """The dataset's feature spec."""
        return FeatureSpec.load(self.dataset / "features.yaml")

    def check_inputs(self) -> None:
        """Raise unless the dataset and the store are there.

        Raises:
            PipelineError: Says which file is missing and what makes it.
        """
        for name in ("features.yaml", "impressions.parquet", "items.parquet"):
            if not (self.dataset / name).is_file():
                raise PipelineError(
                    f"{self.dataset} holds no {name}: make a prepared dataset with "
                    "`laser-pipeline prepare`"
                )
        if not is_address(self.store) and not Path(self.store).is_dir():
            raise PipelineError(
                f"{self.store} is not a SeqVault: load the dataset's events with "
                "`laser-pipeline load`"
            )


def load_config(
    config: str,
    dataset: Path,
    store: str | Path,
    work: Path,
    overrides: Mapping[str, Any] | None = None,
) -> PipelineConfig:
    """Read a config file.

    Args:
        config: Path of a YAML file, or the name of one in ``tfx_pipeline/configs``.
        dataset: Folder of a prepared dataset.
        store: Folder of its SeqVault, or the address of its servers.
        work: Folder for everything that the run makes.
        overrides: Entries that override those of the file.

    Raises:
        PipelineError: No such file, not YAML, an unknown or missing entry, a value that does not
            fit, a bad time range.
    """
    path = Path(config)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / f"{config}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise PipelineError(f"no config {config!r}; give a YAML file or one of {known}")
    settings = check(PipelineSettings, {**read_yaml(path), **(overrides or {})}, str(path))
    if not settings.splits:
        splits = _dataset_splits(dataset)
        settings = check(PipelineSettings, {**plain(settings), "splits": splits}, str(dataset))
    where = str(store) if is_address(store) else str(Path(store).resolve())
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    if settings.warm_start and scheme_of(settings.warm_start) is None:
        values["warm_start"] = str(Path(settings.warm_start).resolve())
    return PipelineConfig(**values, dataset=dataset.resolve(), store=where, work=work.resolve())


def _dataset_splits(dataset: Path) -> dict[str, dict[str, int]]:
    """The splits that the dataset's adapter wrote down."""
    try:
        prepared = PreparedDataset.load(dataset)
    except DatasetError as error:
        raise PipelineError(str(error)) from error
    return {name: {"start": start, "end": end} for name, (start, end) in prepared.splits.items()}


def with_training(config: PipelineConfig, **training: Any) -> PipelineConfig:
    """The same config with some settings of the trainer changed.

    Raises:
        SettingsError: A setting is unknown or does not fit.
    """
    return replace(
        config,
        training=check(type(config.training), {**plain(config.training), **training}, "training"),
    )
