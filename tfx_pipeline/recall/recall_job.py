"""One training of the recall model as a file: what the Trainer hands to its child."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.settings.recall_settings import RecallSettings
from tfx_pipeline.settings.section import check
from tfx_pipeline.training.row_lookup import RowLookup

_JOB, _ARRAYS = "job.json", "arrays.npz"


@dataclass(frozen=True)
class RecallJob:
    """Examples, catalogue and settings of one training.

    Attributes:
        train_files: Files of Examples to train on.
        eval_files: Files of Examples to measure on.
        feature_spec: Content of the dataset's feature spec.
        recall: The settings as plain values.
        serving_model_dir: Where the SavedModel goes.
        result: File that gets what was measured, as JSON.
    """

    train_files: list[str]
    eval_files: list[str]
    feature_spec: dict[str, Any]
    recall: dict[str, Any]
    serving_model_dir: str
    result: str

    @property
    def spec(self) -> FeatureSpec:
        """The dataset's feature spec."""
        return FeatureSpec.from_dict(self.feature_spec)

    @property
    def settings(self) -> RecallSettings:
        """The settings, checked."""
        return check(RecallSettings, self.recall, "section recall")

    def save(self, folder: Path, catalogue: dict[str, NDArray], lookup: RowLookup) -> None:
        """Write it with the catalogue (see ``read_catalogue``) and what Transform found."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"catalogue/{name}": value for name, value in catalogue.items()}
        arrays |= {f"vocabulary/{name}": value for name, value in lookup.vocabularies.items()}
        arrays |= {f"boundaries/{name}": value for name, value in lookup.boundaries.items()}
        np.savez(folder / _ARRAYS, **arrays)  # type: ignore[arg-type]
        (folder / _JOB).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> tuple[RecallJob, dict[str, NDArray], RowLookup]:
        """Read the job, the catalogue and the lookup."""
        job = cls(**json.loads((folder / _JOB).read_text(encoding="utf-8")))
        kinds: dict[str, dict[str, NDArray]] = {"catalogue": {}, "vocabulary": {}, "boundaries": {}}
        with np.load(folder / _ARRAYS) as arrays:
            for key in arrays.files:
                kind, _, name = key.partition("/")
                kinds[kind][name] = arrays[key]
        return job, kinds["catalogue"], RowLookup(kinds["vocabulary"], kinds["boundaries"])
