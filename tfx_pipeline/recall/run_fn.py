"""The entry point of TFX's Trainer of the recall model, ``tfx_pipeline.recall.run_fn.run_fn``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.recall_gate.executor import RESULT
from laser_features import FeatureSpec
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.recall.catalogue import read_catalogue
from tfx_pipeline.recall.recall_job import RecallJob
from tfx_pipeline.recall.recall_spec import recall_spec
from tfx_pipeline.settings.recall_settings import RecallSettings
from tfx_pipeline.settings.section import check, plain
from tfx_pipeline.training.example_files import find_files
from tfx_pipeline.training.row_lookup import RowLookup

_ERROR = "error: "


def run_fn(fn_args: Any) -> None:
    """Train the two towers on ``train_files``, export their index, measure it on ``eval_files``.

    Args:
        fn_args: TFX's ``FnArgs``. Its ``custom_config`` holds ``feature_spec`` (the spec's
            content), ``items`` (Parquet file of the catalogue, a path or a URI), ``recall`` (see
            ``RecallSettings``), ``log`` (file that gets what TensorFlow says in the child; TFX
            removes the folders of a component that failed, so it lies elsewhere) and
            ``fingerprint`` (ignored here; it makes a change of code a change of configuration).
            ``model_run_dir`` gets ``recall.json``.

    Raises:
        SettingsError: A setting is unknown or does not fit, before any work starts.
        PipelineError: The training failed; one line says why.
    """
    config = dict(fn_args.custom_config or {})
    settings = check(RecallSettings, config["recall"], "section recall")
    spec = FeatureSpec.from_dict(config["feature_spec"])
    lookup = RowLookup.from_transform(fn_args.transform_graph_path, spec)
    catalogue = read_catalogue(recall_spec(spec, settings.history), config["items"])
    Path(fn_args.model_run_dir).mkdir(parents=True, exist_ok=True)
    result = Path(fn_args.model_run_dir) / RESULT
    job = RecallJob(
        train_files=find_files(fn_args.train_files),
        eval_files=find_files(fn_args.eval_files),
        feature_spec=spec.to_dict(),
        recall=plain(settings),
        serving_model_dir=fn_args.serving_model_dir,
        result=str(result),
    )
    with tempfile.TemporaryDirectory(prefix="recall_") as folder:
        job.save(Path(folder), catalogue, lookup)
        run_child(Path(folder), Path(config["log"]))
    print(f"recall: {describe(json.loads(result.read_text(encoding='utf-8')))}")


def run_child(folder: Path, log: Path, say: Callable[[str], None] = print) -> None:
    """Train a job in a process of its own, with Keras 2 and on CPUs, and pass its lines on.

    Args:
        folder: Where the job lies.
        log: Gets what TensorFlow says there.
        say: Receives each line.

    Raises:
        PipelineError: It failed; the message is its own last line.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    environment["TF_USE_LEGACY_KERAS"] = "1"
    environment["CUDA_VISIBLE_DEVICES"] = "-1"  # this process may hold all of a GPU's memory
    command = [sys.executable, "-m", "tfx_pipeline.recall.keras2.train", str(folder)]
    reason = ""
    with log.open("wb") as errors:
        # The child ends when its standard input does: it never outlives this process.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
        )
        try:
            assert process.stdout is not None
            for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                if line.startswith(_ERROR):
                    reason = line.removeprefix(_ERROR)
                else:
                    say(f"recall: {line}")
            code = process.wait()
        finally:
            process.kill()
            process.wait()
    if code:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise PipelineError(
            f"the recall model could not be trained: {reason or f'it ended with {how}'} (its log "
            f"is {log})"
        )


def describe(result: dict[str, Any]) -> str:
    """One line for people about what ``recall.json`` holds.

    Example:
        >>> describe({"k": 100, "recall": 0.31, "floor": 0.054, "clicks": 4200, "items": 20000})
        'recall@100 0.3100 of 4,200 clicks among 20,000 items; the 100 most clicked items 0.0540'
    """
    k = result["k"]
    return (
        f"recall@{k} {result['recall']:.4f} of {result['clicks']:,} clicks among "
        f"{result['items']:,} items; the {k} most clicked items {result['floor']:.4f}"
    )
