"""The report of a run as plain data: join counts, training curves, metrics by slice."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_model_analysis as tfma
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorflow_metadata.proto.v0 import anomalies_pb2, statistics_pb2

from components.recall_gate.executor import RESULT
from laser_features import FeatureSpec
from tfx_pipeline.config import HTML_REPORT, REPORT, PipelineConfig
from tfx_pipeline.definition.evaluation import METRICS
from tfx_pipeline.results.html_report import html_report
from tfx_pipeline.results.past_runs import PipelineRun
from tfx_pipeline.results.score_histogram import calibration_curve, lift_curve, read_histogram

_COUNT = "count_"


def make_report(run: PipelineRun, config: PipelineConfig) -> dict[str, Any]:
    """Collect what the artifacts of a run hold.

    Args:
        run: The run.
        config: What it was told; by its feature spec slices are named by ids again, not by
            embedding rows.

    Returns:
        ``run_id``; ``pushed`` (folder or None); ``problems``; ``join`` (counts); ``training``
        (last value of each logged scalar); ``logs`` (folder for TensorBoard); ``evaluation``
        ({slice: {metric: value}}, the whole split under ""); ``anomalies`` (lines about Examples
        that do not fit the schema); ``seconds`` (by component, None where
        the cache was used); ``gates`` (what a model must pass: found, asked, passed);
        ``calibration_curve`` and ``lift_curve`` (of the eval split's scores before calibration);
        ``recall`` (what was measured of the recall model, and ``pushed``, its folder or None),
        where there is one; ``statistics`` (of each feature of the train split); ``lineage``
        (artifact, component, folder).
    """
    spec = config.load_spec()
    report: dict[str, Any] = {
        "run_id": run.run_id,
        "pushed": run.pushed,
        "problems": run.problems,
        "seconds": {
            name: None if node.state == "CACHED" else node.seconds
            for name, node in run.nodes.items()
        },
    }
    if examples := _output(run, "SeqVaultExampleGen", "examples"):
        report["join"] = {
            name.removeprefix(_COUNT): value
            for name, value in sorted(examples[1].items())
            if name.startswith(_COUNT)
        }
    if model_run := _output(run, "Trainer", "model_run"):
        report["logs"] = os.path.join(model_run[0], "logs")
        report["training"] = read_scalars(report["logs"])
    if evaluation := _output(run, "Evaluator", "evaluation"):
        report["evaluation"] = {
            ", ".join(_slice_name(column, value, spec) for column, value in key): metrics
            for key, metrics in read_evaluation(evaluation[0])
        }
    if anomalies := _output(run, "ExampleValidator", "anomalies"):
        report["anomalies"] = read_anomalies(anomalies[0])
    if model_run and (scores := read_histogram(report["logs"])) is not None:
        report["calibration_curve"] = calibration_curve(scores)
        report["lift_curve"] = lift_curve(scores)
    if recall := _output(run, "RecallTrainer", "model_run"):
        measured = (Path(recall[0]) / RESULT).read_text(encoding="utf-8")
        report["recall"] = {**json.loads(measured), "pushed": run.pushed_recall}
    if statistics := _output(run, "StatisticsGen", "statistics"):
        report["statistics"] = read_statistics(statistics[0])
    report["gates"] = _gates(report, run, config)
    report["lineage"] = [
        [name, node.node, uri]
        for node in run.nodes.values()
        for name, artifacts in node.outputs.items()
        for uri, _ in artifacts
    ]
    return report


def _gates(
    report: dict[str, Any], run: PipelineRun, config: PipelineConfig
) -> dict[str, dict[str, Any]]:
    """What had to hold before a model could be pushed."""
    gates: dict[str, dict[str, Any]] = {}
    join, overall = report.get("join", {}), report.get("evaluation", {}).get("", {})
    if rows := join.get("rows_read"):
        bad = sum(count for name, count in join.items() if name.startswith("malformed")) / rows
        most = config.max_bad_fraction
        gates["malformed impressions"] = _gate(bad, f"at most {most:g}", bad <= most)
    if "anomalies" in report:
        found = len(report["anomalies"])
        allowed = set(config.allow_anomalies)
        others = [line for line in report["anomalies"] if line.split(": ")[1] not in allowed]
        gates["anomalies"] = _gate(found, "none, or allowed by name", not others)
    if "auc" in overall:
        auc = overall["auc"]
        gates["AUC"] = _gate(auc, f"above {config.min_auc:g}", auc > config.min_auc)
    if "auc_diff" in overall:
        change, least = overall["auc_diff"], -config.max_auc_drop
        gates["AUC beside the last blessed model"] = _gate(
            change, f"at least {least:g}", change >= least
        )
    if check := _output(run, "ServingCheck", "blessing"):
        sent = check[1].get("requests", 0)
        gates["served answers"] = _gate(sent, "equal to the model's", check[1].get("blessed") == 1)
    if recall := report.get("recall"):
        least = config.recall.min_recall
        gates[f"recall@{recall['k']}"] = _gate(
            recall["recall"], f"at least {least:g}", recall["recall"] >= least
        )
    return gates


def _gate(found: float, asked: str, passed: bool) -> dict[str, Any]:
    return {"found": found, "asked": asked, "passed": bool(passed)}


def write_report(report: dict[str, Any], work: Path) -> Path:
    """Write the report where ``status`` and ``demo`` find it."""
    path = work / REPORT
    partial = work / f".{REPORT}.partial"
    partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    page = work / f".{HTML_REPORT}.partial"
    page.write_text(html_report(report), encoding="utf-8")
    page.replace(work / HTML_REPORT)
    return path


def read_statistics(uri: str) -> dict[str, dict[str, Any]]:
    """What StatisticsGen counted of each feature of the train split; numbers have most of it."""
    path = Path(uri) / "Split-train" / "FeatureStats.pb"
    if not path.is_file():
        return {}
    content = statistics_pb2.DatasetFeatureStatisticsList.FromString(path.read_bytes())
    found = {}
    for feature in content.datasets[0].features:
        name = feature.name or ".".join(feature.path.step)
        kind = feature.WhichOneof("stats")
        stats = getattr(feature, kind)
        values: dict[str, Any] = {
            "examples": stats.common_stats.num_non_missing,
            "missing": stats.common_stats.num_missing,
        }
        if kind == "num_stats":
            values |= {"zeros": stats.num_zeros, "min": stats.min, "mean": stats.mean}
            values |= {"median": stats.median, "max": stats.max, "deviation": stats.std_dev}
        elif kind == "string_stats":
            values["distinct"] = stats.unique
        found[name] = values
    return dict(sorted(found.items()))


def read_evaluation(uri: str) -> list[tuple[tuple[tuple[str, Any], ...], dict[str, float]]]:
    """The candidate model's metrics by slice; the whole split has the empty slice."""
    # With a baseline TFX names the two models candidate and baseline.
    compared = len(tfma.load_eval_result(uri).config.model_specs) > 1
    candidate = tfma.load_eval_result(uri, model_name="candidate" if compared else None)
    return [
        (
            key,
            {
                # Protobuf as JSON spells what a slice of one class has no value for "NaN".
                name: float(metrics[""][""][name]["doubleValue"])
                for name in _in_order(metrics[""][""])
            },
        )
        for key, metrics in sorted(
            candidate.slicing_metrics, key=lambda entry: slice_order(entry[0])
        )
    ]


def _in_order(metrics: Iterable[str]) -> list[str]:
    """The first label's metrics, their differences to a baseline's, then those of other labels."""
    known = [*METRICS, *(f"{metric}_diff" for metric in METRICS)]
    present = list(metrics)
    ours = [name for name in present if name.startswith(METRICS) and name not in known]
    return [*(name for name in known if name in present), *sorted(ours)]


def slice_order(key: tuple[tuple[str, Any], ...]) -> list[tuple[str, int]]:
    """Sorts slices by column and by the first number in the value.

    Example:
        >>> sorted(["over 1000", "51-200", "11-50"], key=lambda name: slice_order((("a", name),)))
        ['11-50', '51-200', 'over 1000']
    """
    numbers = (re.search(r"\d+", str(value)) for _, value in key)
    return [
        (column, int(number.group()) if number else -1)
        for (column, _), number in zip(key, numbers, strict=True)
    ]


def read_anomalies(uri: str) -> list[str]:
    """What ExampleValidator found, a line per split and feature."""
    lines = []
    for path in sorted(Path(uri).glob("Split-*/SchemaDiff.pb")):
        found = anomalies_pb2.Anomalies.FromString(path.read_bytes())
        split = path.parent.name.removeprefix("Split-")
        lines += [
            f"{split}: {name}: {info.description}" for name, info in found.anomaly_info.items()
        ]
    return lines


def read_scalars(folder: str) -> dict[str, float]:
    """Last value of every scalar that was logged for TensorBoard below a folder."""
    scalars = {}
    for path in sorted({os.path.dirname(file) for file in Path(folder).rglob("*tfevents*")}):
        events = EventAccumulator(path, size_guidance={"tensors": 0})
        events.Reload()
        for tag in events.Tags()["tensors"]:
            value = tf.make_ndarray(events.Tensors(tag)[-1].tensor_proto)
            if value.ndim == 0:  # a histogram is no scalar
                scalars[tag] = float(value)
    return scalars


def _slice_name(column: str, value: Any, spec: FeatureSpec) -> str:
    name = column.removeprefix("context_")
    field = spec.context_fields.get(name)
    if field is None or field.table is None or spec.tables[field.table].ids != "direct":
        return f"{column}={value}"
    return f"{name}={value - 1}" if value else f"{name} missing"


def _output(run: PipelineRun, node: str, name: str) -> tuple[str, dict[str, Any]] | None:
    if node not in run.nodes or not run.nodes[node].outputs.get(name):
        return None
    return run.nodes[node].output(name)
