"""The entry point of TFX's Trainer, ``tfx_pipeline.training.run_fn.run_fn``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from components.seqvault_example_gen.content_file import content_file
from laser_features import FeatureSpec
from tfx_pipeline.cluster.supervisor import train_on_local_cluster
from tfx_pipeline.cluster.training_job import TrainingJob
from tfx_pipeline.feature_host.feature_hosts import FeatureHosts
from tfx_pipeline.results.score_histogram import NAME as HISTOGRAM
from tfx_pipeline.results.score_histogram import to_json
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.section import check
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.calibration import fit_calibration
from tfx_pipeline.training.cluster import Cluster, server_loss_named
from tfx_pipeline.training.content_vectors import content_vectors
from tfx_pipeline.training.example_files import find_files
from tfx_pipeline.training.lost_workers import end_when_workers_are_lost
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.stop_request import stop_request
from tfx_pipeline.training.trainer import Trainer
from tfx_pipeline.training.warm_start import WarmStart, warm_checkpoints

_CONFIG_KEYS = {
    "feature_spec",
    "items",
    "model",
    "training",
    "negative_rate",
    "fingerprint",
    "checkpoints",
    "cluster",
    "warm_start",
    "trained_until",
}


def run_fn(fn_args: Any) -> None:
    """Train on ``train_files``, evaluate on ``eval_files``, export to ``serving_model_dir``.

    With a TF_CONFIG that names parameter servers this process is the chief of that cluster.

    Args:
        fn_args: TFX's ``FnArgs``. Its ``custom_config`` holds ``feature_spec`` (a path or the
            spec's content), ``items`` (Parquet file of the items' content vectors; left out, the
            one that the join wrote beside its splits),
            ``model`` and ``training`` (see ``ModelSettings`` and ``TrainingSettings``),
            ``negative_rate`` (share of negatives that the join kept),
            ``checkpoints`` (folder of the checkpoints and logs while training goes on; named by
            all that they depend on, so that whoever runs the same again goes on from the last
            one; they move to ``model_run_dir`` at the end), ``cluster`` (a description of roles on
            this machine, see ``LocalCluster``; "" and none train here), ``warm_start`` (folder of
            the checkpoints of a training that ended, whose state this one begins with; "" and none
            begin anew), ``trained_until`` (end of the training data's time, milliseconds UTC, kept
            for whoever begins with this one) and ``fingerprint``
            (ignored here; it makes a change of code a change of configuration, so that caches
            notice).

    Raises:
        ValueError: A setting that is unknown or does not fit, before any work starts.
        OtherModelError: The warm start is of a model with another spec, shape or labels.
        ClusterError: A cluster that cannot start, that was given up, or whose workers are all lost;
            or feature hosts that do not answer or have other requests.
        TrainingStopped: Somebody asked to stop (SIGTERM, Ctrl-C); the state is saved.
        ServerLostError: A parameter server of the cluster went away.
    """
    config = dict(fn_args.custom_config or {})
    spec = feature_spec(config)
    model_settings = check(ModelSettings, config.get("model") or {}, "section model")
    settings = check(TrainingSettings, config.get("training") or {}, "section training")
    warm = WarmStart.load(config["warm_start"]) if config.get("warm_start") else None
    if warm is not None:
        warm.check_fits(spec, model_settings, settings)
    if config.get("cluster"):
        job = TrainingJob.of_fn_args(fn_args)
        job.custom_config.pop("cluster")
        train_on_local_cluster(config["cluster"], job, Path(fn_args.model_run_dir) / "cluster")
        return
    negative_rate = float(config.get("negative_rate", 1.0))
    hosts = None
    if settings.feature_hosts:
        hosts = FeatureHosts(settings.feature_hosts, spec, negative_rate)
        train_files, eval_files = hosts.shards("train"), hosts.shards("eval")
    else:
        train_files, eval_files = find_files(fn_args.train_files), find_files(fn_args.eval_files)
    progress = _progress_folder(config.get("checkpoints"), train_files) or fn_args.model_run_dir
    lookup = RowLookup.from_transform(fn_args.transform_graph_path, spec)
    if warm is not None:
        lookup = warm.extended(lookup, spec)
    content = content_vectors(spec, config.get("items") or _beside(fn_args.train_files), lookup)
    cluster = Cluster.from_environment()
    with server_loss_named(), end_when_workers_are_lost(cluster):
        trainer = Trainer(
            spec,
            model_settings,
            settings,
            lookup,
            content,
            directory=os.path.join(progress, "checkpoints"),
            log_dir=os.path.join(progress, "logs"),
            cluster=cluster,
            negative_rate=negative_rate,
            eval_files=eval_files,
            warm_start=warm_checkpoints(config["warm_start"]) if warm else None,
            feature_hosts=hosts,
        )
        with stop_request() as should_stop:
            trainer.train(train_files, should_stop)
        found = trainer.evaluate(eval_files)
        _write_histogram(found.histogram, os.path.join(progress, "logs"))
        calibration = fit_calibration(settings.calibration, found.histogram)
        trainer.export(fn_args.serving_model_dir, calibration)
        until = int(config.get("trained_until") or 0)
        left = WarmStart.of_training(spec, model_settings, settings, lookup, until)
        left.save(os.path.join(progress, "checkpoints"))
    if progress != fn_args.model_run_dir:
        _move(progress, fn_args.model_run_dir)


def _beside(train_files: Sequence[str]) -> str:
    """The content vectors of the Examples whose split the files, or their patterns, are."""
    return content_file(os.path.dirname(os.path.dirname(train_files[0])))


def _progress_folder(checkpoints: str | None, train_files: Sequence[str]) -> str | None:
    """The folder of a training that goes on, of these very files.

    On Kubeflow a run may name another dataset than the one whose fingerprint is in the folder's
    name; its Examples lie in another place.
    """
    if not checkpoints:
        return None
    place = hashlib.sha256(os.path.dirname(train_files[0]).encode()).hexdigest()
    return f"{checkpoints}-{place[:8]}"


def _write_histogram(histogram: NDArray[np.int64], logs: str) -> None:
    """Keep the eval scores for the run's report, before they are calibrated."""
    tf.io.gfile.makedirs(logs)
    with tf.io.gfile.GFile(os.path.join(logs, HISTOGRAM), "w") as file:
        file.write(to_json(histogram))


def _move(progress: str, destination: str) -> None:
    """Move the checkpoints and logs of a finished run to its artifact."""
    for name in ("checkpoints", "logs"):
        source, target = os.path.join(progress, name), os.path.join(destination, name)
        if tf.io.gfile.exists(source) and not tf.io.gfile.exists(target):
            tf.io.gfile.makedirs(destination)
            tf.io.gfile.rename(source, target)
    tf.io.gfile.rmtree(progress)


def feature_spec(config: Mapping[str, Any]) -> FeatureSpec:
    """The feature spec of a custom config.

    Raises:
        ValueError: An unknown key, or no feature spec.
    """
    unknown = sorted(set(config) - _CONFIG_KEYS)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r} in custom_config; known: {_CONFIG_KEYS}")
    given = config.get("feature_spec")
    if given is None:
        raise ValueError("custom_config names no 'feature_spec'; give a path or its content")
    return FeatureSpec.load(given) if isinstance(given, str) else FeatureSpec.from_dict(given)
