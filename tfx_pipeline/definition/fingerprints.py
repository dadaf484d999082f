"""Fingerprints of what the components' results depend on beside their input artifacts.

Every runner compiles these into the components' parameters, so that a cache that looks at
parameters and artifacts alone (TFX's, Kubeflow's) sees each change of data, settings and code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from components.seqvault_example_gen.open_store import open_store
from laser_features import FeatureSpec
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.fingerprint import code_fingerprint, combine, file_fingerprint
from tfx_pipeline.reached_modules import ROOMS
from tfx_pipeline.settings.section import plain
from tfx_pipeline.training.warm_start import warm_start_fingerprint

PREPROCESSING_FN = "tfx_pipeline.definition.preprocessing.preprocessing_fn"
RUN_FN = "tfx_pipeline.training.run_fn.run_fn"
JOIN_CODE = ("components.seqvault_example_gen.executor",)
EVALUATION_CODE = ("tfx_pipeline.definition.evaluation",)
RECALL_RUN_FN = "tfx_pipeline.recall.run_fn.run_fn"
RECALL_CODE = ("tfx_pipeline.recall.run_fn", "tfx_pipeline.recall.keras2.train")
SERVING_CODE = ("components.serving_check.executor", "serving.cli")


@dataclass(frozen=True)
class Fingerprints:
    """One fingerprint per component whose result depends on more than its input artifacts.

    Attributes:
        join: Impressions, items, the store's content, feature spec, splits and code.
        transform: Feature spec and code.
        training: What a trained model depends on: ``join``, ``transform``, items, the settings of
            model and training, the state that it begins with, and code. Names the folder of a run's
            checkpoints.
        evaluation: Code.
        serving: Code of the check and of the embedded server.
        recall: What a trained recall model depends on; "" if the config asks for none.
    """

    join: str
    transform: str
    training: str
    evaluation: str
    serving: str
    recall: str = ""


def make_fingerprints(
    config: PipelineConfig,
    spec: FeatureSpec,
    preprocessing_fn: str = PREPROCESSING_FN,
    run_fn: str = RUN_FN,
) -> Fingerprints:
    """Read and hash everything that a run of this config depends on.

    Args:
        config: Dataset, store and settings.
        spec: The dataset's feature spec.
        preprocessing_fn: Dotted path of Transform's function.
        run_fn: Dotted path of Trainer's function.

    Raises:
        PipelineError: There is no training to begin with where the config says.
        SeqVaultError: The store does not exist, is damaged, or no server answers.
        OSError: A file of the dataset cannot be read.
    """
    items = file_fingerprint(config.dataset / "items.parquet")
    splits = {name: [split.start, split.end] for name, split in config.splits.items()}
    join = combine(
        code_fingerprint(JOIN_CODE),
        file_fingerprint(config.dataset / "impressions.parquet"),
        items,
        store_fingerprint(config.store),
        spec.fingerprint(),
        json.dumps([splits, config.rows_per_file, config.negative_rate]),
    )
    transform = combine(_code_of(preprocessing_fn), spec.fingerprint())
    settings = json.dumps([plain(config.model), plain(config.training)], sort_keys=True)
    warm = warm_start_fingerprint(config.warm_start)
    return Fingerprints(
        join=join,
        transform=transform,
        training=combine(join, transform, items, settings, warm, _code_of(run_fn)),
        evaluation=code_fingerprint(EVALUATION_CODE),
        serving=code_fingerprint(SERVING_CODE),
        recall=_recall(config, join, transform, items) if config.recall.k else "",
    )


def _recall(config: PipelineConfig, join: str, transform: str, items: str) -> str:
    # Below which recall it is not pushed is no matter of training.
    settings = {**plain(config.recall), "min_recall": 0.0}
    libraries = [
        metadata.version(name) for name in ("tensorflow", "tensorflow-recommenders", "tf-keras")
    ]
    described = json.dumps([settings, libraries], sort_keys=True)
    return combine(join, transform, items, described, code_fingerprint(RECALL_CODE))


def _code_of(function: str) -> str:
    """Hash of the code that a function imports; its package may be the user's own."""
    module = function.rpartition(".")[0]
    return code_fingerprint([module], {*ROOMS, module.split(".")[0]})


def store_fingerprint(store: str | Path) -> str:
    """Hash of everything that reads can return, of a store in a folder or behind servers."""
    with open_store(store) as vault:
        return str(vault.fingerprint())
