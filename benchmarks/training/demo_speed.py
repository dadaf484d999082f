"""How fast the demo's Trainer is beside that of an older commit, both at once on one machine.

    (cd OLD && PYTHONPATH=$PWD .venv/bin/python -m tfx_pipeline.cli demo > old.log) &
    (cd NEW && PYTHONPATH=$PWD .venv/bin/python -m tfx_pipeline.cli demo > new.log) &
    python -m benchmarks.training.demo_speed --old old.log --new new.log --output FILE

Two demos that run side by side meet the same load. Each says how many impressions a second it
trains on; of these rates the median counts, while both train.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.training.provenance import provenance

_RATE = re.compile(r"^epoch (\d+)/(\d+): ([\d,]+) impressions/s", re.MULTILINE)


def speed(log: Path) -> dict[str, Any]:
    """What a demo's log tells of its Trainer."""
    found = _RATE.findall(log.read_text(encoding="utf-8"))
    if not found:
        raise SystemExit(f"{log} tells no rate: is it the output of `laser-pipeline demo`?")
    rates = [int(rate.replace(",", "")) for *_, rate in found]
    epochs = int(found[0][1])
    return {
        "epochs": epochs,
        "rates": rates,
        "impressions_per_second": statistics.median(rates),
        "seconds_per_million": round(epochs * 1e6 / statistics.median(rates), 1),
    }


def main() -> None:
    """Print the two and their ratios, and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--old", type=Path, required=True, help="output of the older demo")
    parser.add_argument("--new", type=Path, required=True, help="output of the newer one")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    old, new = speed(arguments.old), speed(arguments.new)
    result = {
        **provenance("demo_speed", 7),
        "old": old,
        "new": new,
        "ratio_of_rates": round(new["impressions_per_second"] / old["impressions_per_second"], 2),
        "ratio_of_trainers": round(old["seconds_per_million"] / new["seconds_per_million"], 2),
    }
    text = json.dumps(result, indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
