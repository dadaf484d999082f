"""What a raw result of a training says of itself: how to get it again, and where it is from."""

from __future__ import annotations

import os
import platform
import re
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any


def provenance(module: str, seed: int) -> dict[str, Any]:
    """Command, date, seed and machine.

    Args:
        module: That was run, of ``benchmarks.training``.
        seed: Of everything random in it.
    """
    # Folders differ from machine to machine: of a path its name is enough.
    given = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return {
        "command": " ".join(["python -m", f"benchmarks.training.{module}", *given]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "seed": seed,
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Processor, cores and load, and the versions that numbers depend on."""
    processor = platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        named = re.search(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8"))
        processor = named[1].strip() if named else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("tensorflow", "keras")},
    }
