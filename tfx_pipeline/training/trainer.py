"""A training run put together: state, step, loop, checkpoints and export."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.feature_host.feature_hosts import FeatureHosts
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.training_settings import TrainingSettings, check_negative_rate
from tfx_pipeline.training.calibration import Calibration
from tfx_pipeline.training.checkpoint import Checkpoints, Position
from tfx_pipeline.training.cluster import Cluster
from tfx_pipeline.training.embedding_tables import shards_of
from tfx_pipeline.training.evaluation_log import EvaluationLog
from tfx_pipeline.training.evaluations import Evaluations
from tfx_pipeline.training.export import ServingModel, as_variable
from tfx_pipeline.training.grown_tables import tables_that_may_grow
from tfx_pipeline.training.input_wait import InputWait
from tfx_pipeline.training.labels import REGRESSION, labels_of
from tfx_pipeline.training.loop import TrainingLoop
from tfx_pipeline.training.open_rows import check_open_tables
from tfx_pipeline.training.ranking_step import RankingStep
from tfx_pipeline.training.regression_totals import RegressionTotals
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.running_totals import RunningTotals, Totals
from tfx_pipeline.training.stream_progress import StreamProgress
from tfx_pipeline.training.stream_runs import StreamRuns
from tfx_pipeline.training.tower import Tower
from tfx_pipeline.training.traffic import Traffic
from tfx_pipeline.training.training_state import TrainingState
from tfx_pipeline.training.transmission import check_codec


class Trainer:
    """Trains, evaluates and exports a ranker, in this process or over a cluster.

    Args:
        spec: The feature spec; its first label is trained on, or those of the settings.
        model_settings: The ranker and its sizes.
        settings: Batches, epochs and optimisers.
        lookup: What Transform found; empty for a spec that asks for nothing.
        content: Frozen content vectors, if the spec has any.
        directory: For checkpoints; None keeps none. A run in a directory that has checkpoints goes
            on from the newest.
        log_dir: For TensorBoard; None writes nothing.
        cluster: The parameter-server cluster; None trains in this process.
        report: Takes one line of progress.
        negative_rate: Share of negatives that the training files hold; predictions are corrected
            for it.
        eval_files: What evaluations while training read, if the settings ask for any.
        warm_start: Folder of another training's checkpoints. Without one of its own the run begins
            with that training's tables, weights and optimiser state; its own epochs are all ahead.
            Tables may have more rows than that training's, see ``tables_that_may_grow``.
        feature_hosts: Serve shards, whose names then stand in place of files; None reads files.

    Raises:
        SettingsError: Rows are to travel by ops that are not built here.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        model_settings: ModelSettings,
        settings: TrainingSettings,
        lookup: RowLookup,
        content: NDArray | None = None,
        *,
        directory: str | None = None,
        log_dir: str | None = None,
        cluster: Cluster | None = None,
        report: Callable[[str], None] = print,
        negative_rate: float = 1.0,
        eval_files: Sequence[str] = (),
        warm_start: str | None = None,
        feature_hosts: FeatureHosts | None = None,
    ) -> None:
        check_codec(settings.transmission)
        check_open_tables(spec, settings)
        check_negative_rate(settings, negative_rate)
        self.spec, self.settings, self.lookup = spec, settings, lookup
        self.model_settings = model_settings
        self._content, self._directory, self._report = content, directory, report
        self._warm_start = warm_start
        # Connecting drops what was made on this process's devices before, so it comes first.
        strategy = None if cluster is None else cluster.connect()
        self.labels = labels_of(spec, settings)
        self.tower = Tower(
            spec, model_settings, settings.seed, "absorb", len(self.labels), settings.precision
        )
        ahead = 1 if cluster is None else 2 * len(cluster.addresses["worker"])
        with contextlib.nullcontext() if strategy is None else strategy.scope():
            # Tables first: the partitioner counts on whole rounds over the servers.
            self._frozen = as_variable(content)
            self.state = TrainingState(spec, settings, self.tower)
            totals = RunningTotals()
            eval_totals = [
                RegressionTotals() if label.kind == REGRESSION else RunningTotals()
                for label in self.labels
            ]
            self._checkpoints = (
                Checkpoints(directory, self.state, settings.keep_checkpoints, report, totals)
                if directory
                else None
            )
            self._evaluations = self._make_evaluations(eval_files)
            wait, progress = InputWait(), StreamProgress(ahead + 1 if cluster else 1)
            traffic = Traffic() if cluster else None  # in one process nothing travels
        self._is_distributed = strategy is not None
        self.step = RankingStep(
            spec, settings, self.tower, lookup, self.state, self._frozen, negative_rate, traffic
        )
        coordinator = (
            None
            if strategy is None
            else tf.distribute.experimental.coordinator.ClusterCoordinator(strategy)
        )
        streams = (
            StreamRuns(feature_hosts, settings, progress, coordinator, report)
            if feature_hosts
            else None
        )
        self._loop = TrainingLoop(
            self.step,
            totals,
            eval_totals,
            self._checkpoints,
            self._evaluations,
            coordinator,
            report,
            log_dir,
            ahead,
            wait,
            streams,
            progress,
            traffic,
        )

    def train(
        self, files: Sequence[str], should_stop: Callable[[], bool] = lambda: False
    ) -> Totals:
        """Train over GZIP TFRecord files or shards, from the newest checkpoint on.

        Afterwards the state is the best one that was evaluated, if evaluations were asked for.

        Args:
            files: Of Examples; or names of shards, ``FeatureHosts.shards``.
            should_stop: Asked before each file; the state is saved before
                ``TrainingStopped`` is raised.
        """
        start = Position() if self._checkpoints is None else self._checkpoints.restore()
        if self._warm_start is not None and start == Position():
            self._begin_with(self._warm_start)
        totals = self._loop.train(files, start, should_stop)
        if self._evaluations is not None and self._evaluations.restore_best():
            self._report(f"goes on with the best: {self._evaluations.describe()}")
        return totals

    def _begin_with(self, folder: str) -> None:
        checkpoints = Checkpoints(folder, self.state, report=self._report)
        if checkpoints.restore(tables_that_may_grow(self.spec)) == Position():
            raise ValueError(f"{folder} holds no checkpoint: give those of a training that ended")
        self._report(f"begins with the state of {checkpoints.latest}, step {self._loop.steps:,}")

    @property
    def _best_directory(self) -> str | None:
        if self._directory is None or not self.settings.evaluate_steps:
            return None
        return f"{self._directory}/best"

    def _make_evaluations(self, files: Sequence[str]) -> Evaluations | None:
        if not self.settings.evaluate_steps:
            return None
        if not files:
            raise ValueError("evaluate_steps asks for evaluations; give eval_files")
        best = self._best_directory
        return Evaluations(
            self.settings,
            files,
            EvaluationLog(best and f"{best}/evaluations.jsonl"),
            Checkpoints(best, self.state, keep=1) if best else None,
        )

    def numpy_state(self) -> dict[str, NDArray]:
        """Copies of all variables by name: tables, dense weights and what the optimisers keep."""
        variables = {
            "dense": self.state.dense.values,
            "dense_first_moments": self.state.dense.first_moments,
            "dense_second_moments": self.state.dense.second_moments,
        }
        for name, table in self.state.tables.items():
            variables[f"table_{name}"] = table.values
            variables[f"accumulators_{name}"] = table.accumulators
        for name, open_rows in self.state.open_rows.items():
            variables[f"open_ids_{name}"] = open_rows.ids
            variables[f"open_rows_{name}"] = open_rows.rows
        return {
            name: np.concatenate([shard.numpy() for shard in shards_of(variable)])
            for name, variable in variables.items()
        }

    def evaluate(self, files: Sequence[str]) -> Totals:
        """Loss and AUC over files."""
        return self._loop.evaluate(files)

    def export(self, directory: str, calibration: Calibration | None = None) -> None:
        """Write the SavedModel.

        Args:
            directory: Where to.
            calibration: Maps its probabilities; None leaves them as they are.

        Raises:
            ValueError: Tables that lie on servers can only be exported from a checkpoint.
        """
        state, content = self.state, self._frozen
        if self._is_distributed:
            if self._directory is None:
                raise ValueError(
                    "a cluster's model is exported from a checkpoint; give a directory"
                )
            state = TrainingState(self.spec, self.settings, self.tower)
            content = as_variable(self._content)
            best = self._best_directory
            kept = best if best and tf.io.gfile.exists(best) else self._directory
            checkpoints = Checkpoints(kept, state)
            checkpoints.restore()
            if checkpoints.damaged:
                raise ValueError(
                    f"checkpoint {checkpoints.damaged[0]} of the trained model is damaged: give "
                    "the same command again to train on from the one before"
                )
        seed, outputs = self.settings.seed, len(self.labels)
        tower = Tower(self.spec, self.model_settings, seed, outputs=outputs)
        lookup = self.lookup
        for name, open_rows in state.open_rows.items():
            lookup = lookup.with_ids(name, *open_rows.mapping())
        ServingModel(
            self.spec,
            tower,
            lookup,
            state,
            content,
            self.step.logit_offset,
            calibration,
            self.labels,
        ).save(directory)
