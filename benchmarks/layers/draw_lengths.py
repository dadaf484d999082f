"""Draws time by length of the history from the committed results: ``docs/layers/lengths.svg``."""

import json
import math
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "tensorflow_cpu.json"
OUTPUT = HERE.parents[1] / "docs" / "layers" / "lengths.svg"
CANDIDATES = 10
SYSTEMS = {
    "hstu": ("HSTU", "#7c3aed"),
    "paper_form": ("LASER, order of the paper", "#64748b"),
    "laser": ("LASER, as here", "#2563a8"),
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 680, 360, 60, 190, 40, 50


def series(results: dict, system: str) -> list[tuple[int, float]]:
    """(length, milliseconds per request) of a system's forward passes, shortest first."""
    return sorted(
        (case["length"], case["wall_ms_per_request"])
        for case in results["times"]
        if case["system"] == system
        and case["candidates"] == CANDIDATES
        and case["pass"] == "forward"
        and "wall_ms_per_request" in case  # left out, with the reason, where it took too long
    )


def svg(results: dict) -> str:
    """Both axes logarithmic; a line of slope 1 is linear in the length."""
    lines = {system: series(results, system) for system in SYSTEMS}
    lengths = sorted({length for line in lines.values() for length, _ in line})
    times = [ms for line in lines.values() for _, ms in line]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    first, last = math.log(lengths[0]), math.log(lengths[-1])

    def x(length: float) -> float:
        return LEFT + (math.log(length) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(ms: float) -> float:
        return TOP + (high - math.log10(ms)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    environment = results["environment"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-weight="bold">Milliseconds to score {CANDIDATES} candidates'
        ", by length of the history</text>",
    ]
    for power in range(low, high + 1):
        ms = 10.0**power
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(ms):.1f}" y2="{y(ms):.1f}" '
            f'stroke="#e2e8f0"/><text x="{LEFT - 8}" y="{y(ms) + 4:.1f}" text-anchor="end">'
            f"{ms:g}</text>"
        )
    for length in lengths:
        parts.append(
            f'<text x="{x(length):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
            f"{length}</text>"
        )
    for system, (label, colour) in SYSTEMS.items():
        points = [(x(length), y(ms)) for length, ms in lines[system]]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in points
        ]
        px, py = points[-1]
        parts.append(f'<text x="{px + 8:.1f}" y="{py + 4:.1f}" fill="{colour}">{label}</text>')
    parts.append(
        f'<text x="{LEFT}" y="{HEIGHT - 10}" fill="#64748b">d=128, TensorFlow, '
        f"{environment['cores']} CPU cores, {environment['date']}; benchmarks/layers/results/"
        f"{RESULTS.name}</text></svg>"
    )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(svg(json.loads(RESULTS.read_text())), encoding="utf-8")
    print(f"wrote {OUTPUT.name}")
