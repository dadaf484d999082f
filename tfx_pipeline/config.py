"""What a pipeline run is told: a YAML file and four folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from components.seqvault_example_gen.time_range import TimeRange
from laser_features import FeatureSpec
from seqvault.service.address import is_address
from tfx_pipeline.datasets import DatasetError, PreparedDataset
from tfx_pipeline.errors import PipelineError

REPORT = "last_run.json"
CONFIGS = Path(__file__).parent / "configs"
LOCAL_BEAM_ARGS = (
    "--runner=FnApiRunner",
    "--direct_running_mode=in_memory",
    "--direct_num_workers=1",
    # Never used here; without a place where workers find their code TFX packs its own sources
    # into an archive in a temporary folder, again for every component, and leaves it there.
    "--sdk_container_image=local",
)


@dataclass(frozen=True)
class PipelineConfig:
    """Everything that ``create_pipeline`` needs.

    Attributes:
        name: Of the pipeline and of the served model.
        dataset: Folder of a prepared dataset.
        store: Folder of its SeqVault, or the address of its servers (see ``seqvault.connect``).
        work: Folder for artifacts, metadata, dead letters and pushed models.
        splits: Time ranges; ``train`` and ``eval`` must be there. A config without them takes those
            that the dataset's adapter found.
        training: Handed to the trainer as it is.
        slices: Context fields to slice the evaluation by; None takes ``scenario`` if there is one.
        min_auc: A model is blessed only above it.
        max_auc_drop: By how much AUC may lie below the last blessed model's.
        max_bad_fraction: Share of malformed impressions above which a run fails.
        rows_per_file: Impressions per Examples file, about.
        checked_requests: Requests that the serving check sends.
        model_server: Command that starts a model server, TensorFlow Serving's flags are appended;
            empty means the embedded one. Give ``["tensorflow_model_server"]`` to use that.
        baseline_model: Folder of the model to compare with, where there is no ML Metadata of past
            runs (Kubeflow); empty for none.
        beam_args: Beam pipeline arguments: another runner goes here.
    """

    name: str
    dataset: Path
    store: str
    work: Path
    splits: dict[str, TimeRange]
    training: dict[str, Any] = field(default_factory=dict)
    slices: tuple[str, ...] | None = None
    min_auc: float = 0.5
    max_auc_drop: float = 0.01
    max_bad_fraction: float = 0.01
    rows_per_file: int = 16384
    checked_requests: int = 64
    model_server: tuple[str, ...] = ()
    baseline_model: str = ""
    beam_args: tuple[str, ...] = LOCAL_BEAM_ARGS

    def __post_init__(self) -> None:
        for name in ("train", "eval"):
            if name not in self.splits:
                raise PipelineError(
                    f"config {self.name!r} has the splits {sorted(self.splits)}; "
                    "it needs train and eval, each with start and end"
                )

    @property
    def metadata(self) -> Path:
        """The SQLite file of ML Metadata."""
        return self.work / "metadata.sqlite"

    @property
    def serving(self) -> Path:
        """Base path of the pushed model: one folder per version."""
        return self.work / "serving" / self.name

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
        overrides: Entries that take the place of the file's.

    Raises:
        PipelineError: No such file, not YAML, an unknown or missing entry, a bad time range.
    """
    path = Path(config)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / f"{config}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise PipelineError(f"no config {config!r}; give a YAML file or one of {known}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise PipelineError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise PipelineError(f"{path} must hold entries like `name: ...`; received {content!r}")
    content = {**content, **(overrides or {})}
    return _from_content(content, str(path), dataset, store, work)


def _from_content(
    content: dict[str, Any], source: str, dataset: Path, store: str | Path, work: Path
) -> PipelineConfig:
    where = str(store) if is_address(store) else str(Path(store).resolve())
    paths = {"dataset": dataset.resolve(), "store": where, "work": work.resolve()}
    known = set(PipelineConfig.__dataclass_fields__) - set(paths)
    if unknown := sorted(set(content) - known):
        raise PipelineError(f"{source}: unknown entry {unknown[0]!r}; known are {sorted(known)}")
    if "name" not in content:
        raise PipelineError(f"{source}: the entry 'name' is missing")
    given = content.get("splits") or _dataset_splits(dataset)
    try:
        splits = {name: TimeRange.parse(part["start"], part["end"]) for name, part in given.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PipelineError(
            f"{source}: splits are time ranges like `train: {{start: 2022-04-25T00:00:00+08:00, "
            f"end: 2022-05-05T00:00:00+08:00}}` ({error})"
        ) from error
    tuples = {name: tuple(content[name]) for name in _TUPLES if name in content}
    return PipelineConfig(**{**content, **tuples, **paths, "splits": splits})


def _dataset_splits(dataset: Path) -> dict[str, dict[str, int]]:
    """The splits that the dataset's adapter wrote down."""
    try:
        prepared = PreparedDataset.load(dataset)
    except DatasetError as error:
        raise PipelineError(str(error)) from error
    return {name: {"start": start, "end": end} for name, (start, end) in prepared.splits.items()}


def with_training(config: PipelineConfig, **training: Any) -> PipelineConfig:
    """The same config with some entries for the trainer changed."""
    return replace(config, training={**config.training, **training})


_TUPLES = ("slices", "model_server", "beam_args")
