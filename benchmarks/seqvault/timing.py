"""Clocks, percentiles, and a page cache that can be emptied."""

import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

MICRO = 1e6
Sample = tuple[float, float]  # wall and CPU microseconds


def timed(function: Callable[[], Any]) -> Sample:
    """Wall and CPU microseconds of one call, all threads of this process together."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return (time.perf_counter() - wall) * MICRO, (time.process_time() - cpu) * MICRO


def percentiles(samples: list[Sample], warm_up: int = 3) -> dict[str, float]:
    """p50 and p99 of wall and CPU time; the first samples are left out."""
    array = np.array(samples[warm_up:])
    return {
        f"{clock}_p{p}": round(float(np.percentile(array[:, c], p)), 1)
        for c, clock in enumerate(("wall", "cpu"))
        for p in (50, 99)
    }


def bytes_below(path: str) -> int:
    """Bytes that the files below a folder take on the disk, holes not counted."""
    return sum(f.stat().st_blocks * 512 for f in Path(path).rglob("*") if f.is_file())


def drop_page_cache(path: str) -> None:
    """Makes the next read of every file below a folder come from the disk."""
    for file in Path(path).rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def provenance(module: str, seed: int) -> dict[str, Any]:
    """What a raw result must say of itself: how to get it again, and where it is from.

    Args:
        module: that was run, for instance ``compare``.
        seed: of everything random in it.
    """
    # folders differ from machine to machine: of a path its name is enough
    given = [Path(word).name if Path(word).exists() else word for word in sys.argv[1:]]
    command = " ".join(["python -m", f"benchmarks.seqvault.{module}", *given])
    today = datetime.now(timezone.utc).date().isoformat()
    return {"command": command, "date": today, "seed": seed, "machine": machine()}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].split(":", 1)[1].strip() if names else model
    packages = ("numpy", "numba", "rocksdict", "lmdb", "redis", "zstandard")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": [round(one, 2) for one in os.getloadavg()],
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }
