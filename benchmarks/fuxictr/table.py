"""Renders the table of this folder's README from the raw results.

python -m benchmarks.fuxictr.table
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.between_marks import between_marks

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
START, END = "<!-- table: python -m benchmarks.fuxictr.table -->\n", "<!-- end of table -->"
UNITS = {
    "target_attention": "our DIN, target attention",
    "activation_unit": "our DIN, activation unit",
}
HEAD = """\
| system | user's id | seeds | test AUC | less FuxiCTR's, by seed | test logloss | validation AUC |
|---|---|---|---|---|---|---|
"""


def table() -> str:
    """Means over the seeds with their standard deviations, in Markdown."""
    theirs, ours = (_runs(name) for name in ("fuxictr.json", "laser.json"))
    rows = []
    for user in (False, True):
        base = {run["seed"]: run for run in theirs if run["user"] == user}
        if not base:
            continue
        rows.append(_row("FuxiCTR's DIN", base, None))
        for unit, name in UNITS.items():
            chosen = {
                run["seed"]: run
                for run in ours
                if (run["unit"], run["user"]) == (unit, user) and run["seed"] in base
            }
            if chosen:
                rows.append(_row(name, chosen, base))
    return HEAD + "".join(rows)


def _runs(name: str) -> list[dict[str, Any]]:
    return json.loads((HERE / "results" / name).read_text(encoding="utf-8"))["runs"]


def _row(name: str, runs: dict[int, Any], base: dict[int, Any] | None) -> str:
    user = "yes" if next(iter(runs.values()))["user"] else "no"
    auc, *others = (
        spread(run[key] for run in runs.values()) for key in ("auc", "logloss", "valid_auc")
    )
    ahead = "" if base is None else spread((runs[s]["auc"] - base[s]["auc"] for s in runs), "+")
    return f"| {' | '.join((name, user, str(len(runs)), auc, ahead, *others))} |\n"


def spread(values: Iterable[float], sign: str = "") -> str:
    """The mean and, of several values, their standard deviation."""
    found = list(values)
    mean = f"{np.mean(found):{sign}.4f}"
    return f"{mean} ± {np.std(found, ddof=1):.4f}" if len(found) > 1 else mean


def rendered(text: str) -> str:
    """The README with its table as the results say now."""
    return between_marks(text, START, END, table())


if __name__ == "__main__":
    README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {README.name}")
