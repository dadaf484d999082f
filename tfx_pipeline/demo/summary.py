"""The summary that the demo prints."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

from tfx_pipeline.console import Console
from tfx_pipeline.datasets import PreparedDataset
from tfx_pipeline.demo.live_ranking import MEASURED_REQUESTS, Ranking
from tfx_pipeline.load_store import LoadSummary
from tfx_pipeline.results.click_rate_floors import click_rate_floors

COMPARISON = Path(__file__).with_name("comparison.json")
"""What `python -m benchmarks.paper.render demo_lean` kept of a comparison on the demo's log."""


def summarise(
    console: Console,
    dataset: PreparedDataset,
    loaded: LoadSummary,
    report: dict[str, Any],
    ranking: Ranking,
) -> None:
    """Print what was loaded, joined, trained, measured, pushed and served."""
    say, evaluation = console.say, report["evaluation"]
    join, training = report["join"], report["training"]
    say()
    say("Summary")
    say(
        f"  SeqVault     {loaded.bulk_events + loaded.appended_events:,} events of "
        f"{loaded.users:,} users ({loaded.appended_events:,} through the log), "
        f"{loaded.bytes_per_event:.2f} bytes per event, {loaded.items:,} items"
    )
    say(
        f"  Examples     {join['impressions']:,} impressions in {join['requests']:,} requests: "
        f"{join['requests_train']:,} to train, {join['requests_eval']:,} to evaluate"
    )
    for name, count in join.items():
        if name.startswith(("malformed", "dropped", "unknown", "empty", "truncated", "outside")):
            say(f"    {count:,} {name.replace('_', ' ')}")
    for line in report.get("anomalies", []):
        say(f"  Anomaly      {line}")
    overall = evaluation[""]
    say(f"  Training     AUC {training['train/auc']:.4f}, log loss {training['train/loss']:.4f}")
    say(
        f"  Evaluation   AUC {overall['auc']:.4f}, gAUC {overall['gauc']:.4f}, log loss "
        f"{overall['log_loss']:.4f}, calibration {overall['calibration']:.3f}"
    )
    floors = click_rate_floors(dataset.impressions_path, dataset.spec, dataset.splits)
    for name, floor in floors.items():
        say(f"    floor: AUC of the {name} alone {floor:.4f}")
    for line in measured_beside(dataset, COMPARISON):
        say(f"    {line}")
    for name, fact in dataset.facts.items():
        say(f"    planted: {name.replace('_', ' ')} {fact}")
    for name, metrics in evaluation.items():
        if name:
            say(
                f"    {name:24s} AUC {metrics['auc']:.4f}, gAUC {metrics['gauc']:.4f}, "
                f"{metrics['impressions']:,.0f} impressions"
            )
    say(f"    TensorBoard logs: {report['logs']}")
    say(f"  Pushed       {report['pushed']}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    say(f"  Peak memory  {peak:.1f} GiB, of the pipeline's process")
    say(f"  Rank answer  {_shown(ranking.before)}")
    say(f"  after a live event with item {ranking.item}:")
    say(f"               {_shown(ranking.after)}")
    latency = ranking.latency
    say(
        f"  Latency      {latency['total_ms']:.1f} ms: store {latency['store_ms']:.1f}, features "
        f"{latency['features_ms']:.1f}, model {latency['model_ms']:.1f} (median of "
        f"{MEASURED_REQUESTS} requests)"
    )


def measured_beside(dataset: PreparedDataset, comparison: Path) -> list[str]:
    """AUC of other systems on the same dataset, from recorded runs; empty for other data."""
    if not comparison.is_file():
        return []
    kept = json.loads(comparison.read_text(encoding="utf-8"))
    here = {"source": dataset.source, "counts": dict(dataset.counts)}
    if kept["dataset"] != here:
        return []
    return [
        f"beside it: AUC of {system} {auc:.4f} (mean of seeds {kept['seeds']}, {kept['from']})"
        for system, auc in kept["auc"].items()
    ]


def _shown(answer: dict[str, Any]) -> str:
    best = ", ".join(f"{each['item_id']} ({each['score']:.4f})" for each in answer["ranked"][:4])
    return f"{best}, ... from {answer['history_length']} events"
