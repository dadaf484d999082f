"""Draws AUC by day from the committed results: ``docs/results/days.svg``."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "days.json"
ONE_PASS = HERE / "results" / "days_one_epoch.json"
OUTPUT = HERE.parents[1] / "docs" / "results" / "days.svg"
LINES = {
    "one_pass": ("day by day, one pass over each", "#2563a8"),
    "day_by_day": ("day by day, two passes", "#7c3aed"),
    "stopped": ("two passes, none after ten days", "#64748b"),
    "at_once": ("ten days at once", "#b45309"),
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 340, 60, 220, 40, 50
LOW, HIGH = 0.73, 0.77


def series(results: dict[str, Any], one_pass: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """(number of the day, AUC) by line, in order."""
    days = sorted(results["by_day"])
    found = {
        name: [
            (number, results["by_day"][day][name])
            for number, day in enumerate(days)
            if name in results["by_day"][day]
        ]
        for name in LINES
    }
    found["one_pass"] = [
        (number, one_pass["by_day"][day]["day_by_day"]) for number, day in enumerate(days)
    ]
    return found


def svg(results: dict[str, Any], one_pass: dict[str, Any]) -> str:
    """A line for each way to train; a day is predicted before it is learned."""
    days = sorted(results["by_day"])

    def x(number: int) -> float:
        return LEFT + number / (len(days) - 1) * (WIDTH - LEFT - RIGHT)

    def y(auc: float) -> float:
        return TOP + (HIGH - auc) / (HIGH - LOW) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-weight="bold">AUC on KuaiRand by day, each day predicted '
        "before it is learned</text>",
    ]
    for step in range(5):
        auc = LOW + step * (HIGH - LOW) / 4
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(auc):.1f}" y2="{y(auc):.1f}" '
            f'stroke="#e2e8f0"/><text x="{LEFT - 8}" y="{y(auc) + 4:.1f}" text-anchor="end">'
            f"{auc:.2f}</text>"
        )
    for number, day in enumerate(days):
        parts.append(
            f'<text x="{x(number):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
            f"{int(day[-2:])}</text>"
        )
    for place, (name, points) in enumerate(series(results, one_pass).items()):
        label, colour = LINES[name]
        path = " ".join(f"{x(number):.1f},{y(auc):.1f}" for number, auc in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(number):.1f}" cy="{y(auc):.1f}" r="3" fill="{colour}"/>'
            for number, auc in points
        ]
        top = TOP + 18 * place
        parts.append(f'<text x="{WIDTH - RIGHT + 16}" y="{top}" fill="{colour}">{label}</text>')
    parts.append(
        f'<text x="{LEFT}" y="{HEIGHT - 10}" fill="#64748b">26 April to 8 May 2022; '
        f"benchmarks/training/results/{RESULTS.name} and {ONE_PASS.name}</text></svg>"
    )
    return "\n".join(parts) + "\n"


def main() -> None:
    read = [json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS, ONE_PASS)]
    OUTPUT.write_text(svg(*read), encoding="utf-8")
    print(f"wrote {OUTPUT.name}")


if __name__ == "__main__":
    main()
