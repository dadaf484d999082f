"""AUC and cost over what a figure of the paper varies: layers, or events of the history."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VARIED = {"figure3_layers": "GSTA layers", "figure3_length": "events of the history"}
"""By comparison, what the number at the end of its systems' names counts."""


def series_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float, float]]]:
    """By system its points (number, AUC, million MACs), of systems named ``din_500`` or ``m2``.

    >>> series_of([{"system": "m2", "auc": 0.8, "macs": {"encoder": 2e6}}])
    {'laser': [(2, 0.8, 2.0)]}
    """
    found: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for row in rows:
        name = re.fullmatch(r"(?:m|(?P<system>\w+)_)(?P<number>\d+)", row["system"])
        if name is None:
            raise ValueError(f"system {row['system']!r} names no number, as `din_500` or `m2` do")
        if row["auc"] is not None:
            macs = sum(row["macs"].values()) / 1e6
            found[name["system"] or "laser"].append((int(name["number"]), row["auc"], macs))
    return {name: sorted(points) for name, points in found.items()}


def draw_trend(name: str, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the plot of a comparison of ``VARIED`` as SVG; equal rows give an equal file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure, (quality, cost) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for system, points in series_of(rows).items():
            numbers, aucs, macs = zip(*points, strict=True)
            quality.plot(numbers, aucs, "o-", label=system)
            cost.plot(numbers, macs, "o-", label=system)
        for axes, label in ((quality, "AUC"), (cost, "million multiply-accumulates of a request")):
            if name == "figure3_length":
                axes.set_xscale("log")
            axes.set_xticks(numbers, [str(number) for number in numbers])
            axes.minorticks_off()
            axes.set_xlabel(VARIED[name])
            axes.set_ylabel(label)
            axes.legend()
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
