"""The pipeline: from impressions and a SeqVault to a pushed SavedModel."""

from __future__ import annotations

from pathlib import Path

import tensorflow_data_validation as tfdv
from tfx.components import (
    Evaluator,
    ExampleValidator,
    StatisticsGen,
    Trainer,
    Transform,
)
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.importer import Importer
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import pusher_pb2, trainer_pb2
from tfx.types import BaseChannel, Channel, standard_artifacts

from components.anomaly_gate.component import AnomalyGate
from components.atomic_pusher import AtomicPusher
from components.recall_gate.component import RecallGate
from components.seqvault_example_gen.component import SeqVaultExampleGen
from components.seqvault_example_gen.settings import Settings
from components.serving_check.component import ServingCheck
from laser_features import FeatureSpec
from tfx_pipeline.check_run import check_run
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.definition.baseline_strategy import BaselineStrategy
from tfx_pipeline.definition.evaluation import make_eval_config
from tfx_pipeline.definition.example_schema import statistics_features, write_schema
from tfx_pipeline.definition.fingerprints import (
    PREPROCESSING_FN,
    RECALL_RUN_FN,
    RUN_FN,
    make_fingerprints,
)
from tfx_pipeline.settings.section import plain


def create_pipeline(
    config: PipelineConfig,
    preprocessing_fn: str = PREPROCESSING_FN,
    run_fn: str = RUN_FN,
    resolve_baseline: bool = True,
    dataset: str | None = None,
) -> Pipeline:
    """The TFX pipeline of a config.

    Dotted paths name the code that Transform and Trainer run; TFX puts no fingerprint of such code
    into its cache keys, so ``Fingerprints`` travel in the components' configs: whatever changed is
    computed again, with what depends on it, and nothing else.

    Args:
        config: Dataset, store, folders, splits, thresholds.
        preprocessing_fn: Dotted path of Transform's function.
        run_fn: Dotted path of Trainer's function.
        resolve_baseline: Compare with the latest blessed model that ML Metadata knows; without it
            with ``config.baseline_model``, if given.
        dataset: Path or URI by which the components find the dataset; None takes
            ``config.dataset``.

    Raises:
        PipelineError: The dataset or the store is not there, or a slice names no context field.
        FeatureSpecError: The dataset's feature spec is not valid.
    """
    check_run(config)
    spec = config.load_spec()
    dataset = (dataset or str(config.dataset)).rstrip("/")
    fingerprints = make_fingerprints(config, spec, preprocessing_fn, run_fn)
    example_gen = SeqVaultExampleGen(
        dataset=dataset, settings=_join_settings(config, spec, fingerprints.join)
    )
    examples = example_gen.outputs["examples"]
    schema_file = write_schema(spec, config.work / "schema")
    schema_gen = ImportSchemaGen(schema_file=str(schema_file))
    schema = schema_gen.outputs["schema"]
    statistics_gen = StatisticsGen(
        examples=examples,
        schema=schema,
        stats_options=tfdv.StatsOptions(feature_allowlist=statistics_features(spec)),
    )
    validator = ExampleValidator(statistics=statistics_gen.outputs["statistics"], schema=schema)
    gate = AnomalyGate(validator.outputs["anomalies"], list(config.allow_anomalies))
    transform = Transform(
        examples=examples,
        schema=schema,
        preprocessing_fn=preprocessing_fn,
        materialize=False,
        disable_statistics=True,
        custom_config={
            "feature_spec": spec.to_dict(),
            "fingerprint": fingerprints.transform,
        },
    )
    trainer = Trainer(
        run_fn=run_fn,
        examples=examples,
        transform_graph=transform.outputs["transform_graph"],
        schema=schema,
        train_args=trainer_pb2.TrainArgs(splits=["train"]),
        eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
        custom_config={
            "feature_spec": spec.to_dict(),
            "model": plain(config.model),
            "training": plain(config.training),
            "fingerprint": fingerprints.training,
            "checkpoints": str(config.work / "training" / fingerprints.training),
            "negative_rate": config.negative_rate,
            "warm_start": config.warm_start,
            "trained_until": config.splits["train"].end,
            # Where it is trained is no part of the fingerprint: another number of servers goes on
            # from the same checkpoints.
            "cluster": config.cluster,
        },
    )
    for node in (transform, trainer):
        node.add_upstream_node(gate)
    model = trainer.outputs["model"]
    baseline = _baseline(config, model, resolve_baseline)
    evaluator = Evaluator(
        examples=examples,
        model=model,
        baseline_model=baseline.outputs["model"] if baseline else None,
        eval_config=make_eval_config(
            label=next(iter(spec.labels)),
            slice_features=_slice_features(config, spec),
            min_auc=config.min_auc,
            max_auc_drop=config.max_auc_drop,
            code_fingerprint=fingerprints.evaluation,
            more_labels=_more_binary_labels(config, spec),
        ),
        module_path="tfx_pipeline.definition.evaluation",
    )
    serving_check = ServingCheck(
        model=model,
        examples=examples,
        model_name=config.name,
        command=list(config.model_server),
        requests=config.checked_requests,
        fingerprint=fingerprints.serving,
    )
    pusher = AtomicPusher(
        model=model,
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=serving_check.outputs["blessing"],
        push_destination=_destination(config.serving),
    ).with_id("Pusher")
    recall = _recall_nodes(config, spec, dataset, examples, transform, fingerprints.recall)
    for node in recall[:1]:
        node.add_upstream_node(pusher)  # whatever fails there, the ranker is out
    return Pipeline(
        pipeline_name=config.name,
        pipeline_root=str(config.work / "pipeline"),
        components=[
            *([baseline] if baseline else []),
            example_gen,
            schema_gen,
            statistics_gen,
            validator,
            gate,
            transform,
            trainer,
            evaluator,
            serving_check,
            pusher,
            *recall,
        ],
        enable_cache=True,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(config.metadata)),
        beam_pipeline_args=list(config.beam_args),
    )


def _recall_nodes(
    config: PipelineConfig,
    spec: FeatureSpec,
    dataset: str,
    examples: BaseChannel,
    transform: Transform,
    fingerprint: str,
) -> list[BaseNode]:
    """Trainer, gate and Pusher of the recall model; none if the config asks for none."""
    if not config.recall.k:
        return []
    trainer = Trainer(
        run_fn=RECALL_RUN_FN,
        examples=examples,
        transform_graph=transform.outputs["transform_graph"],
        train_args=trainer_pb2.TrainArgs(splits=["train"]),
        eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
        custom_config={
            "feature_spec": spec.to_dict(),
            "items": f"{dataset}/items.parquet",
            # The gate alone looks at it: another bound trains nothing again.
            "recall": {**plain(config.recall), "min_recall": 0.0},
            "log": str(config.work / "recall.log"),
            "fingerprint": fingerprint,
        },
    ).with_id("RecallTrainer")
    gate = RecallGate(trainer.outputs["model_run"], config.recall.min_recall)
    pusher = AtomicPusher(
        model=trainer.outputs["model"],
        infra_blessing=gate.outputs["blessing"],
        push_destination=_destination(config.recall_serving),
    ).with_id("RecallPusher")
    return [trainer, gate, pusher]


def _destination(folder: Path | str) -> pusher_pb2.PushDestination:
    filesystem = pusher_pb2.PushDestination.Filesystem(base_directory=str(folder))
    return pusher_pb2.PushDestination(filesystem=filesystem)


def _more_binary_labels(config: PipelineConfig, spec: FeatureSpec) -> list[str]:
    """Labels with a probability of their own, beside the first."""
    labels = config.training.labels
    first = next(iter(spec.labels))
    return [name for name, each in labels.items() if name != first and each.kind == "binary"]


def _slice_features(config: PipelineConfig, spec: FeatureSpec) -> list[str]:
    """Features of the Examples to slice by."""
    names = config.slices
    if names is None:
        names = tuple(name for name in ("scenario",) if name in spec.context_fields)
    return [f"context_{name}" for name in names]


def _baseline(config: PipelineConfig, model: BaseChannel, resolve: bool) -> BaseNode | None:
    """The node whose output ``model`` is the one to compare with."""
    if resolve:
        return Resolver(
            strategy_class=BaselineStrategy,
            model=Channel(type=standard_artifacts.Model),
            model_blessing=Channel(type=standard_artifacts.ModelBlessing),
            candidate=model,
        ).with_id("latest_blessed_model")
    if config.baseline_model:
        return Importer(
            source_uri=config.baseline_model,
            artifact_type=standard_artifacts.Model,
            output_key="model",
        ).with_id("baseline_model")
    return None


def _join_settings(config: PipelineConfig, spec: FeatureSpec, fingerprint: str) -> Settings:
    return Settings(
        feature_spec=spec.to_dict(),
        store=config.store,
        splits=config.splits,
        dead_letters=str(config.work / "dead_letters"),
        max_bad_fraction=config.max_bad_fraction,
        max_outside_fraction=config.max_outside_fraction,
        rows_per_file=config.rows_per_file,
        negative_rate=config.negative_rate,
        fingerprint=fingerprint,
    )
