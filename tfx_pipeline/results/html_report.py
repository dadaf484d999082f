"""A run's report as one HTML file that needs nothing else: no scripts, no fonts, no network."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfx_pipeline.results.score_histogram import auc_interval

_WIDTH, _HEIGHT, _MARGIN = 420, 260, 40
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .2em .8em; text-align: right; }
th { border-bottom: 2px solid #888; } td:first-child, th:first-child { text-align: left; }
tr:nth-child(even) { background: #f4f4f4; } .good { color: #176b2c; } .bad { color: #a31515; }
svg { background: #fafafa; margin-right: 1em; } figure { display: inline-block; margin: 0; }
.wide { overflow-x: auto; }
figcaption { font-size: .9em; } code { background: #f0f0f0; padding: 0 .2em; }
"""


def html_report(report: Mapping[str, Any]) -> str:
    """The page of a report (see ``make_report``); parts that the report lacks are left out."""
    parts = [
        _head(report),
        _gates(report.get("gates", {})),
        _evaluation(report.get("evaluation", {})),
        _figures(report),
        _table("Join", ["count", "number"], _pairs(report.get("join", {}))),
        _table("Training", ["scalar", "last value"], _pairs(report.get("training", {}))),
        _list("Anomalies", report.get("anomalies", [])),
        _statistics(report.get("statistics", {})),
        _table("Components", ["component", "seconds"], _seconds(report.get("seconds", {}))),
        _table("Lineage", ["artifact", "made by", "where"], report.get("lineage", [])),
    ]
    title = html.escape(f"Run {report.get('run_id', '')}")
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _head(report: Mapping[str, Any]) -> str:
    title = f"<h1>Run {html.escape(str(report.get('run_id', '')))}</h1>"
    if report.get("pushed"):
        return (
            f'{title}\n<p class="good">pushed to <code>{html.escape(report["pushed"])}</code></p>'
        )
    return title + _list("Nothing was pushed", report.get("problems", []), "bad")


def _gates(gates: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, _number(gate["found"]), gate["asked"], "passed" if gate["passed"] else "failed"]
        for name, gate in gates.items()
    ]
    return _table("Gates", ["gate", "found", "asked", ""], rows)


def _evaluation(evaluation: Mapping[str, Mapping[str, float]]) -> str:
    rows = []
    for name, metrics in evaluation.items():
        interval = _interval(metrics)
        shown = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        columns = ("auc", "gauc", "log_loss", "calibration", "click_rate")
        numbers = [_number(metrics.get(column, math.nan)) for column in columns]
        impressions = f"{metrics.get('impressions', 0):,.0f}"
        rows.append([name or "all", numbers[0], shown, *numbers[1:], impressions])
    names = ["slice", "AUC", "95% interval", "gAUC", "log loss", "calibration", "click rate"]
    return _table("Evaluation", [*names, "impressions"], rows)


def _interval(metrics: Mapping[str, float]) -> tuple[float, float] | None:
    return auc_interval(
        metrics.get("auc", math.nan),
        metrics.get("impressions", 0.0),
        metrics.get("click_rate", math.nan),
    )


def _figures(report: Mapping[str, Any]) -> str:
    calibration, lift = report.get("calibration_curve", []), report.get("lift_curve", [])
    figures = []
    if calibration:
        points = [(mean, rate) for mean, rate, _ in calibration]
        top = max(max(point) for point in points)
        figures.append(
            _figure("Calibration: click rate by mean score, groups of equal size", points,
                    (top, top), [(0.0, 0.0), (top, top)])
        )  # fmt: skip
    if lift:
        top = max(value for _, value in lift)
        figures.append(
            _figure("Lift: click rate of the best scores relative to all, by their share",
                    list(lift), (1.0, top), [(0.0, 1.0), (1.0, 1.0)])
        )  # fmt: skip
    return f"<h2>Scores</h2>\n{''.join(figures)}" if figures else ""


def _figure(
    title: str,
    points: Sequence[tuple[float, float]],
    top: tuple[float, float],
    reference: Sequence[tuple[float, float]],
) -> str:
    """A curve with its reference line, as an SVG; both axes begin at 0."""

    def place(point: tuple[float, float]) -> str:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * point[0] / (top[0] or 1.0)
        y = _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * point[1] / (top[1] or 1.0)
        return f"{x:.1f},{y:.1f}"

    def label(value: float, x: float, y: float) -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" font-size="12">{value:.3g}</text>'

    dots = "".join(
        f'<circle cx="{place(point).split(",")[0]}" cy="{place(point).split(",")[1]}" r="3" '
        'fill="#1f5fa8"/>'
        for point in points
    )
    base = _HEIGHT - _MARGIN
    return (
        f'<figure><svg width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">'
        f'<polyline points="{" ".join(map(place, reference))}" fill="none" stroke="#999" '
        'stroke-dasharray="4"/>'
        f'<polyline points="{" ".join(map(place, points))}" fill="none" stroke="#1f5fa8" '
        'stroke-width="2"/>'
        f'{dots}<path d="M{_MARGIN},{_MARGIN} V{base} H{_WIDTH - _MARGIN}" fill="none" '
        'stroke="#444"/>'
        f"{label(0, _MARGIN - 12, base + 14)}{label(top[0], _WIDTH - _MARGIN - 10, base + 16)}"
        f"{label(top[1], 4, _MARGIN + 4)}</svg>"
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
    )


def _statistics(statistics: Mapping[str, Mapping[str, Any]]) -> str:
    columns = ["examples", "missing", "zeros", "distinct", "min", "median", "mean", "max"]
    rows = [
        [name, *(_number(values.get(column, "")) for column in columns)]
        for name, values in statistics.items()
    ]
    return _table("Feature statistics (train)", ["feature", *columns], rows)


def _seconds(seconds: Mapping[str, float | None]) -> list[list[str]]:
    return [[name, "cached" if took is None else f"{took:.1f}"] for name, took in seconds.items()]


def _pairs(values: Mapping[str, Any]) -> list[list[str]]:
    return [[name.replace("_", " "), _number(value)] for name, value in values.items()]


def _table(title: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    if not body:
        return ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    table = f"<table><tr>{head}</tr>\n{body}</table>"
    return f'<h2>{html.escape(title)}</h2>\n<div class="wide">{table}</div>'


def _list(title: str, lines: Iterable[str], kind: str = "") -> str:
    body = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<h2 class="{kind}">{html.escape(title)}</h2><ul>{body}</ul>' if body else ""


def _number(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
