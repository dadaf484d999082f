"""Times the README's first command in an empty clone: set-up, demo, peak memory.

    python -m benchmarks.demo.run [--output FILE]

Clones the committed state, creates the environment from the lock file (downloads come from the
package cache if it is warm) and runs ``make demo`` without an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from tfx_pipeline.datasets.generator_settings import GeneratorSettings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> None:
    """Measure and write the raw result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    output = parser.parse_args().output.resolve()
    # The clone must find its own environment, not the one that runs this script.
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
        commit = subprocess.run(
            ["git", "-C", folder, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        ).stdout.strip()
        seconds = {}
        text = ""
        for target in ("env", "demo"):
            started = time.monotonic()
            done = subprocess.run(
                ["make", target], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
            )
            seconds[target] = round(time.monotonic() - started, 1)
            text = done.stdout.replace(os.path.realpath(folder), ".")
            print(text)
            if done.returncode:
                sys.exit(f"make {target} ended with {done.returncode}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    result = {
        "command": "python -m benchmarks.demo.run",
        "seed": GeneratorSettings().seed,
        "commit": commit,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "seconds": {**seconds, "all": round(sum(seconds.values()), 1)},
        "largest_process_gib": round(peak, 2),
        "stage_seconds": dict(re.findall(r"\[ *\d+/\d+\] (\w+): ([\d.]+) s", text)),
        "summary": text[text.find("Summary") :].strip().splitlines(),
    }
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor and whether it has AVX-512, which the time to train goes by."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    name = re.search(r"model name\s*: (.+)", text)
    vectors = "with" if "avx512f" in text else "without"
    return f"{name[1] if name else platform.machine()}, {vectors} AVX-512"


if __name__ == "__main__":
    main()
