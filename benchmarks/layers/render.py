"""Writes the tables of ``README.md`` in this folder from the raw results; see there.

python -m benchmarks.layers.render
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.between_marks import between_marks

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
START, END = "<!-- rendered from results/ -->", "<!-- end -->"
LASER, PAPER, TRANSFORMER, NETWORK = "laser", "paper_form", "transformer", "segment_network"
STA, READ = "segmented_target_attention", "history_read"
MEASURES = {
    "wall_ms_per_request": "elapsed",
    "cpu_ms_per_request": "processor time, because the machine was busy with other work",
}
PASSES = ("forward", "forward+backward")


class Report:
    """One result file: times by case, memory by system."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.environment: dict[str, Any] = content["environment"]
        self.rows: list[dict[str, Any]] = content["times"]
        self.memory = {row["system"]: row["step_peak_mb"] for row in content["memory"]}

    @property
    def measure(self) -> str:
        """Elapsed time, or processor time where other work disturbed the run."""
        busy = self.environment["load_before"] > 1
        return "cpu_ms_per_request" if busy else "wall_ms_per_request"

    @property
    def systems(self) -> list[str]:
        """The systems in the order of measurement."""
        return list(dict.fromkeys(row["system"] for row in self.rows))

    def row(self, system: str, length: int, candidates: int, case: str) -> dict[str, Any] | None:
        """The row of one system in one case, if it was measured or left out."""
        wanted = (system, length, candidates, case)
        keys = ("system", "length", "candidates", "pass")
        found = (row for row in self.rows if tuple(row[key] for key in keys) == wanted)
        return next(found, None)

    def milliseconds(self, system: str, length: int, case: str) -> float | None:
        """Time per request with one candidate."""
        row = self.row(system, length, 1, case)
        return None if row is None else row.get(self.measure)


def render(reports: dict[str, Report]) -> str:
    """Everything between the marks in the page: goals, then a table per result file."""
    parts = [_goals(reports)]
    for name, report in reports.items():
        environment = report.environment
        parts.append(
            f"### `results/{name}.json`\n\n{environment['backend']}, Keras {environment['keras']}, "
            f"{'XLA, ' if environment['jit'] else ''}{environment['cores']} cores, load "
            f"{environment['load_before']:.1f} before the run, {environment['date']}. "
            f"Milliseconds per request, {MEASURES[report.measure]}.\n\n{_times(report)}"
        )
    return "\n\n".join(parts)


def _goals(reports: dict[str, Report]) -> str:
    lines = ["| goal (L=1000, d=128, N=1) | where | peer | LASER | ratio | reached |"]
    lines.append("|---|---|---|---|---|---|")
    for name, report in reports.items():
        for peer, goal in ((PAPER, 3.0), (TRANSFORMER, 20.0)):
            for case in PASSES:
                theirs = report.milliseconds(peer, 1000, case)
                ours = report.milliseconds(LASER, 1000, case)
                shared = report.milliseconds(NETWORK, 1000, case)
                if theirs is None or ours is None:
                    continue
                ratio = theirs / ours
                reached = "yes" if ratio >= goal else "no"
                if ratio < goal and shared is not None:
                    reached += (
                        f": the segments' network alone takes {shared:.3g} ms; "
                        f"with nothing else to do the ratio were {theirs / shared:.2f}"
                    )
                lines.append(
                    f"| {goal:g}x {peer}, {case} | {name} | {theirs:.3g} ms | {ours:.3g} ms "
                    f"| {ratio:.2f} | {reached} |"
                )
        for case in PASSES:
            short, long = (report.milliseconds(LASER, length, case) for length in (1000, 10000))
            if short is not None and long is not None:
                growth = long / short
                reached = "yes" if growth <= 11 else f"no{_growth_of_others(report, case)}"
                lines.append(
                    f"| linear to L=10,000, {case} | {name} | {short:.3g} ms at 1,000 "
                    f"| {long:.3g} ms | {growth:.1f} for 10 times L | {reached} |"
                )
        if {LASER, PAPER} <= set(report.memory):
            ours, theirs = report.memory[LASER], report.memory[PAPER]
            reached = "yes" if ours <= theirs / 2 else "no, see above"
            lines.append(
                f"| half the memory of a step | {name} | {theirs:.0f} MB | {ours:.0f} MB "
                f"| {ours / theirs:.2f} | {reached} |"
            )
        lines += _against_one_read(name, report)
    return "\n".join(lines)


def _against_one_read(name: str, report: Report) -> list[str]:
    """Rows of the goal for GPUs: STA by itself within twice the time to read the history."""
    read, sta, network = (
        report.milliseconds(system, 1000, "forward") for system in (READ, STA, NETWORK)
    )
    if read is None or sta is None or network is None:
        return []
    ratio = sta / read
    if not report.environment["accelerators"]:
        reached = "measured on a CPU only"
    else:
        reached = "yes" if ratio <= 2 else "no"
    if ratio > 2:
        reached += f": the segments' network alone takes {network / read:.1f} times one read"
    goal = "STA within 2x one read of the history on a GPU"
    return [f"| {goal} | {name} | {read:.3g} ms | {sta:.3g} ms | {ratio:.2f} | {reached} |"]


def _growth_of_others(report: Report, case: str) -> str:
    """How much of a growth beyond 10 the machine has part in."""
    shown = []
    for system, what in (
        (NETWORK, "the segments' network, in both calls as many rows, has"),
        (PAPER, "the paper's form"),
    ):
        short, long = (report.milliseconds(system, length, case) for length in (1000, 10000))
        if short is not None and long is not None:
            shown.append(f"{what} {long / short:.1f}")
    return f": {', '.join(shown)}" if shown else ""


def _times(report: Report) -> str:
    cases = list(
        dict.fromkeys((row["candidates"], row["length"], row["pass"]) for row in report.rows)
    )
    lines = ["| N | L | pass | " + " | ".join(report.systems) + " |"]
    lines.append("|---|---|---|" + "---|" * len(report.systems))
    for candidates, length, case in sorted(cases):
        cells = []
        for system in report.systems:
            row = report.row(system, length, candidates, case)
            time = None if row is None else row.get(report.measure)
            cells.append("left out" if time is None else f"{time:.3g}")
        lines.append(f"| {candidates} | {length} | {case} | " + " | ".join(cells) + " |")
    lines.append("\n*Left out*: too large or too slow; the raw result says which.")
    return "\n".join(lines)


def load(folder: Path = FOLDER / "results") -> dict[str, Report]:
    """All results, by file name."""
    return {
        path.stem: Report(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))
    }


def replace_rendered(page: str, rendered: str) -> str:
    """The page with everything between the marks replaced."""
    return between_marks(page, START, END, f"\n\n{rendered}\n\n")


def main() -> None:
    """Render all results into the page."""
    README.write_text(replace_rendered(README.read_text(), render(load())))


if __name__ == "__main__":
    main()
