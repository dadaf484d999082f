"""Times the commands of docs/pipeline.md, each in a process of its own, and their first lines.

    python -m benchmarks.demo.docs_flow [--output FILE]

They run in an empty folder with the page's own arguments, on kernels that are not compiled yet; the
pipeline's ``run`` is given once more at the end, when everything is cached.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.demo.run import processor
from tfx_pipeline.datasets.generator_settings import GeneratorSettings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# The page's own config is for a log of millions; the log that its commands make is small.
CONFIG = """
name: laser
min_auc: 0.0
model: {dim: 16, mixer_dim: 16, num_tokens: 8, encoder: {num_recent_segments: 2}}
training: {batch_size: 64}
"""


def commands() -> list[str]:
    """The lines of the page's block of commands, and its ``run`` again."""
    page = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    lines = block.splitlines()
    return [*lines, *(line for line in lines if line.startswith("laser-pipeline run "))]


def timed(line: str, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run one command; seconds until its first line and in all."""
    program, *arguments = shlex.split(line)
    assert program == "laser-pipeline", line
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "tfx_pipeline.cli", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        heard = time.monotonic() - began
        rest = process.stdout.read()
    if process.returncode:
        sys.exit(f"{line} ended with {process.returncode}:\n{first}{rest}")
    found = {
        "command": line,
        "first_line_seconds": round(heard, 2),
        "seconds": round(time.monotonic() - began, 1),
        "first_line": first.strip().replace(os.path.realpath(folder), "."),
    }
    print(found, flush=True)
    return found


def main() -> None:
    """Measure and write the raw result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "docs_flow_results.json")
    output = parser.parse_args().output.resolve()
    load = [round(each, 1) for each in os.getloadavg()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONUNBUFFERED": "1",
            "NUMBA_CACHE_DIR": str(folder / "kernels"),
        }
        taken = [timed(line, folder, environment) for line in commands()]
    result = {
        "command": "python -m benchmarks.demo.docs_flow",
        "seed": GeneratorSettings().seed,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "load": load},
        "commands": taken,
    }
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
