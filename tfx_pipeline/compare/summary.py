"""The table and the plots of a comparison."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfx_pipeline.compare.compare_settings import CompareSettings, Run
from tfx_pipeline.compare.joined_log import JoinedLog
from tfx_pipeline.compare.paired_bootstrap import Difference, ScoredRun, paired_difference
from tfx_pipeline.compare.results_file import FAILED, OK, ResultsFile
from tfx_pipeline.datasets import PreparedDataset
from tfx_pipeline.errors import PipelineError

METRICS = ("auc", "gauc", "log_loss", "normalised_entropy", "calibration")
_PAIRED = ("auc", "gauc")


def summarise(
    settings: CompareSettings,
    runs: Sequence[Run],
    found: Mapping[str, dict[str, Any] | None],
    results: ResultsFile,
    log: JoinedLog,
) -> list[dict[str, Any]]:
    """One row per system, in the order of the file.

    Returns:
        ``system``, ``runs`` (that have metrics), ``problems``, mean and standard deviation of each
        metric, ``difference_auc`` and ``difference_gauc`` to the baseline over the seeds that both
        have ([mean, low, high]), MACs, weights and seconds.
    """
    label = f"label_{next(iter(log.spec.labels))}"
    labels = np.asarray(log.of_impressions("eval", label))
    known, users = np.unique(log.users_of_impressions("eval"), return_inverse=True)
    good = {key: entry for key, entry in found.items() if entry and entry["status"] == OK}

    def scored(name: str) -> dict[int, ScoredRun]:
        return {
            run.seed: ScoredRun(users, labels, results.scores(run.key))
            for run in runs
            if run.name == name and run.key in good
        }

    baseline = scored(settings.baseline)
    rows = []
    for name in settings.systems:
        own = [run for run in runs if run.name == name]
        entries = [good[run.key] for run in own if run.key in good]
        row: dict[str, Any] = {"system": name, "runs": len(entries), "length": own[0].length}
        row["problems"] = [
            f"seed {run.seed}: {entry['status']} ({entry.get('problem', '')})"
            for run in own
            if (entry := found[run.key]) is not None and entry["status"] != OK
        ]
        for metric in METRICS:
            values = [entry[metric] for entry in entries]
            row[metric] = float(np.mean(values)) if values else None
            row[f"{metric}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        if entries:
            row["macs"] = entries[0].get("macs")
            row["weights"] = entries[0].get("weights")
            causes = [entry["gates_auc"] for entry in entries if "gates_auc" in entry]
            row["gates_auc"] = float(np.mean(causes)) if causes else None
            row["seconds"] = float(np.mean([entry["seconds"] for entry in entries]))
        for metric, gap in _differences(settings, name, scored(name), baseline, len(known)):
            row[f"difference_{metric}"] = [gap.mean, gap.low, gap.high]
        rows.append(row)
    return rows


def _differences(
    settings: CompareSettings,
    name: str,
    system: Mapping[int, ScoredRun],
    baseline: Mapping[int, ScoredRun],
    users: int,
) -> Iterator[tuple[str, Difference]]:
    seeds = [seed for seed in system if seed in baseline]
    if name == settings.baseline or not seeds:
        return
    pairs = [system[seed] for seed in seeds], [baseline[seed] for seed in seeds]
    for metric in _PAIRED:
        yield metric, paired_difference(*pairs, users, metric, settings.bootstrap)


def write_summary(
    settings: CompareSettings,
    rows: Sequence[dict[str, Any]],
    work: Path,
    dataset: PreparedDataset,
    found: Mapping[str, dict[str, Any] | None],
    runs: Sequence[Run],
) -> list[str]:
    """Write ``table.md``, ``summary.json`` and the plots; returns the lines to show."""
    table = markdown_table(settings, rows)
    problems = [f"{row['system']}, {each}" for row in rows for each in row["problems"]]
    listed = "".join(f"- {each}\n" for each in problems)
    text = f"{table}\nRuns without a result:\n\n{listed}" if problems else table
    (work / "table.md").write_text(text, encoding="utf-8")
    summary = {
        "name": settings.name,
        "dataset": {"source": dataset.source, "counts": dict(dataset.counts)},
        "facts": dict(dataset.facts),
        "baseline": settings.baseline,
        "seeds": list(settings.seeds),
        "machine": {"processor": platform.machine(), "python": platform.python_version()},
        "rows": rows,
        "runs": [found[run.key] for run in runs],
    }
    text = json.dumps(summary, indent=1)
    (work / "summary.json").write_text(text + "\n", encoding="utf-8")
    plots = draw_plots(settings, rows, work)
    written = ", ".join(["table.md", "summary.json", *plots])
    return [*table.splitlines(), *problems, f"written to {work}: {written}"]


def check_results(settings: CompareSettings, found: Mapping[str, dict[str, Any] | None]) -> str:
    """What is to be said of runs without a result; nothing if each has one.

    Raises:
        PipelineError: There is no result to compare, or none of the baseline.
    """
    entries = [entry for entry in found.values() if entry is not None]
    bad = [entry for entry in entries if entry["status"] != OK]
    failed = sum(entry["status"] == FAILED for entry in bad)
    if not bad:
        return ""
    said = f"{failed} of {len(found)} runs failed and {len(bad) - failed} diverged"
    first = f"the first: {bad[0]['system']}, seed {bad[0]['seed']}: {bad[0].get('problem', '')}"
    if len(bad) == len(entries):
        raise PipelineError(f"{said}: there is nothing to compare; {first}")
    of_baseline = [entry for entry in bad if entry["system"] == settings.baseline]
    if len(of_baseline) == sum(entry["system"] == settings.baseline for entry in entries):
        raise PipelineError(
            f"{said}: the baseline {settings.baseline!r} has no result to compare with; "
            f"seed {of_baseline[0]['seed']}: {of_baseline[0].get('problem', '')}"
        )
    again = "; the same command takes those that failed again" if failed else ""
    return f"{said}{again}"


def markdown_table(settings: CompareSettings, rows: Sequence[dict[str, Any]]) -> str:
    """The comparison for people."""
    head = ["system", "runs", "AUC", "gAUC", "log loss", "NE", "calibration"]
    head += [f"AUC - {settings.baseline} (95%)", f"gAUC - {settings.baseline} (95%)"]
    head += ["AUC of causes by gate", "MACs of a request", "dense weights", "s a run"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        lines.append(
            [
                row["system"],
                str(row["runs"]),
                *(_mean(row, metric) for metric in METRICS),
                _gap(row.get("difference_auc")),
                _gap(row.get("difference_gauc")),
                "" if row.get("gates_auc") is None else f"{row['gates_auc']:.3f}",
                _millions(sum(row["macs"].values()) if row.get("macs") else None),
                "" if not row.get("weights") else f"{row['weights']:,}",
                "" if row.get("seconds") is None else f"{row['seconds']:.0f}",
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _mean(row: dict[str, Any], metric: str) -> str:
    if row[metric] is None:
        return ""
    spread = row[f"{metric}_sd"]
    return f"{row[metric]:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def _gap(gap: Sequence[float] | None) -> str:
    if gap is None:
        return ""
    clear = "" if gap[1] <= 0 <= gap[2] else " *"
    return f"{gap[0]:+.4f} [{gap[1]:+.4f}, {gap[2]:+.4f}]{clear}"


def _millions(macs: float | None) -> str:
    return "" if macs is None else f"{macs / 1e6:,.1f} M"


def draw_plots(settings: CompareSettings, rows: Sequence[dict[str, Any]], work: Path) -> list[str]:
    """Difference to the baseline with its interval, and AUC against cost, as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names: list[str] = []
    shown = [row for row in rows if row.get("difference_auc")]
    if shown:
        figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(shown) + 1.2), layout="constrained")
        gaps: NDArray = np.array([row["difference_auc"] for row in shown])
        places = np.arange(len(shown))[::-1]
        spans = np.abs(gaps[:, 1:].T - gaps[:, 0])
        axes.errorbar(gaps[:, 0], places, xerr=spans, fmt="o", color="#1f4e79", capsize=3)
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_yticks(places, [row["system"] for row in shown])
        axes.set_xlabel(f"AUC less that of {settings.baseline}, 95% interval")
        names += _save(figure, work, "difference")
    shown = [row for row in rows if row["auc"] is not None and row.get("macs")]
    if shown:
        figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        cost = [max(sum(row["macs"].values()), 1) / 1e6 for row in shown]
        spread = [row["auc_sd"] or 0.0 for row in shown]
        axes.errorbar(cost, [row["auc"] for row in shown], yerr=spread, fmt="o", color="#1f4e79")
        for row, x in zip(shown, cost, strict=True):
            axes.annotate(row["system"], (x, row["auc"]), xytext=(5, 4), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_xlabel("million multiply-accumulates of a request")
        axes.set_ylabel("AUC of the eval split, mean and sd over seeds")
        names += _save(figure, work, "cost")
    pyplot.close("all")
    return names


def _save(figure: Any, work: Path, name: str) -> list[str]:
    for kind in ("png", "svg"):
        figure.savefig(work / f"{name}.{kind}", dpi=150)
    return [f"{name}.png", f"{name}.svg"]
