"""Day after day: what each day's model was worth on the day after, as lines and as a page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SPANS, PAGE = "spans.jsonl", "spans.html"
_WIDTH, _HEIGHT, _LEFT, _BASE = 760, 300, 60, 250
_COLOURS = ("#1f5fa8", "#b5651d")


@dataclass(frozen=True)
class SpanResult:
    """One day's run: its model predicts the next day, which no training has seen.

    Attributes:
        span: The day that was trained on.
        predicted: The next day, whose impressions the metrics are of.
        impressions: Their number.
        auc: Of the day's own model.
        auc_before: Of the last blessed model before it, NaN if there was none.
        log_loss: Of the day's own model.
        calibration: Sum of its probabilities over clicks.
        pushed: Folder of the pushed model, None where it did not pass.
        problems: Why not.
        warm_start: The run whose model it began with, "" for none.
        seconds: Of the run.
    """

    span: str
    predicted: str
    impressions: int
    auc: float
    auc_before: float
    log_loss: float
    calibration: float
    pushed: str | None
    problems: tuple[str, ...]
    warm_start: str
    seconds: float

    @classmethod
    def of_report(
        cls, span: str, predicted: str, report: Mapping[str, Any], warm_start: str, seconds: float
    ) -> SpanResult:
        """From a run's report."""
        overall = report.get("evaluation", {}).get("", {})
        auc = overall.get("auc", math.nan)
        return cls(
            span=span,
            predicted=predicted,
            impressions=int(overall.get("impressions", 0)),
            auc=auc,
            auc_before=auc - overall.get("auc_diff", math.nan),
            log_loss=overall.get("log_loss", math.nan),
            calibration=overall.get("calibration", math.nan),
            pushed=report.get("pushed"),
            problems=tuple(report.get("problems", ())),
            warm_start=warm_start,
            seconds=round(seconds, 1),
        )


def keep_span_result(result: SpanResult, work: Path) -> list[SpanResult]:
    """Write a day's result in place of an earlier one of that day, and the page anew.

    Returns:
        Those of all days, in order.
    """
    known = {each.span: each for each in read_span_results(work)}
    known[result.span] = result
    results = [known[span] for span in sorted(known)]
    _write(work / SPANS, "".join(_to_line(each) for each in results))
    _write(work / PAGE, spans_page(results))
    return results


def read_span_results(work: Path) -> list[SpanResult]:
    """What was kept in a work folder, by day."""
    path = work / SPANS
    if not path.is_file():
        return []
    return [_of_line(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _to_line(result: SpanResult) -> str:
    """As JSON, which has no NaN."""
    entries = asdict(result)
    for name, value in entries.items():
        if isinstance(value, float) and math.isnan(value):
            entries[name] = None
    return json.dumps(entries) + "\n"


def _of_line(line: str) -> SpanResult:
    entries = json.loads(line)
    for name in _NUMBERS:
        if entries[name] is None:
            entries[name] = math.nan
    return SpanResult(**{**entries, "problems": tuple(entries["problems"])})


_NUMBERS = ("auc", "auc_before", "log_loss", "calibration")


def span_lines(results: Iterable[SpanResult]) -> list[str]:
    """A table for people: one line per predicted day."""
    rows = [_HEAD, *(_cells(each) for each in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    return [
        "  ".join(
            [*(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=True)), row[-1]]
        )
        for row in rows
    ]


_HEAD = (
    "predicted", "learned until", "impressions", "AUC", "before", "log loss", "calibration",
    "pushed",
)  # fmt: skip


def _cells(result: SpanResult) -> tuple[str, ...]:
    numbers = (result.auc, result.auc_before, result.log_loss, result.calibration)
    shown = ["" if math.isnan(number) else f"{number:.4f}" for number in numbers]
    outcome = "yes" if result.pushed else "no: " + "; ".join(result.problems)
    return (result.predicted, result.span, f"{result.impressions:,}", *shown, outcome)


def spans_page(results: Sequence[SpanResult]) -> str:
    """The table and a plot of AUC by day, as one HTML file that needs nothing else."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in _HEAD)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(each)) + "</tr>"
        for each in results
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Day after day</title>'
        "<style>body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; }"
        "table { border-collapse: collapse; } th, td { padding: .2em .8em; text-align: right; }"
        "svg { background: #fafafa; }</style></head>\n<body><h1>Day after day</h1>\n"
        "<p>Each day is predicted before it is learned: by the model of the day before, and by the "
        f"last one that was blessed before that.</p>\n{_plot(results)}\n"
        f"<table><tr>{head}</tr>\n{body}</table>\n</body></html>\n"
    )


def _plot(results: Sequence[SpanResult]) -> str:
    lines = {
        "the day's model": [each.auc for each in results],
        "the model before": [each.auc_before for each in results],
    }
    known = [value for values in lines.values() for value in values if not math.isnan(value)]
    if not known:
        return ""
    low, high = math.floor(min(known) * 100) / 100, math.ceil(max(known) * 100) / 100
    high = max(high, low + 0.01)

    def place(number: int, value: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - 2 * _LEFT) * number / max(len(results) - 1, 1)
        return x, _BASE - (_BASE - 40) * (value - low) / (high - low)

    parts = []
    for position, (name, values) in enumerate(lines.items()):
        points = [place(*each) for each in enumerate(values) if not math.isnan(each[1])]
        colour = _COLOURS[position]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(_text(_LEFT + 160 * position, 20, name, colour))
    parts += [_text(10, place(0, value)[1] + 4, f"{value:.2f}") for value in (low, high)]
    step = -(-len(results) // 10)
    parts += [
        _text(place(number, low)[0] - 16, _BASE + 22, each.predicted[5:])
        for number, each in enumerate(results)
        if number % step == 0
    ]
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="AUC by predicted day">'
        f'<path d="M{_LEFT},40 V{_BASE} H{_WIDTH - _LEFT}" fill="none" stroke="#444"/>'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, colour: str = "#222") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="12" fill="{colour}">{html.escape(text)}</text>'
    )


def _write(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
