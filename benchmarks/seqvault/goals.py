"""What SeqVault set out to reach, against what one run measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.seqvault import bounds

Goal = dict[str, Any]
ROCKS_BLOBS = ("rocksdb blob lz4", "rocksdb blob zstd")


def table(result: dict[str, Any], folder: Path) -> list[Goal]:
    """Rows: goal, peer, ours, theirs, unit, ratio, bound, reached, and why not if it is not.

    Args:
        result: of ``compare``.
        folder: with results of the other scripts; goals that they measure are left out
            where they were not run.
    """
    one, batch = result["one_user"], result["batch_of_64"]
    size, merging = result["bytes_per_event"], result["reads_during_merges"]
    append = result["durable_append"]
    ours = "seqvault"
    rows = [
        _against("batch of 64: CPU p50", *_best(batch, ROCKS_BLOBS, "cpu_p50"), "us", 1 / 6),
        _against("batch of 64: CPU p50", "lmdb raw", batch[ours]["cpu_p50"],
                 batch["lmdb raw"]["cpu_p50"], "us", 1 / 3),
        _against("one user: wall p50", "lmdb raw", one[ours]["wall_p50"],
                 one["lmdb raw"]["wall_p50"], "us", 1.0),
        _against("one user: wall p99", *_best(one, ROCKS_BLOBS, "wall_p99"), "us", 0.4),
        _against("batch of 64 against a copy of its answer: CPU p50", "memcpy",
                 batch[ours]["cpu_p50"], result["copy_of_answer_cpu_us"], "us", 1.8),
        _against("disk", "rocksdb event keys lz4", size[ours], size["rocksdb event keys lz4"],
                 "B/event", 0.36),
        _against("disk", "rocksdb event keys zstd", size[ours], size["rocksdb event keys zstd"],
                 "B/event", 0.60),
    ]  # fmt: skip
    if "seqvault interned" in size:
        rows.append(
            _against("disk, interned ids", "rocksdb event keys zstd", size["seqvault interned"],
                     size["rocksdb event keys zstd"], "B/event", 0.45)
        )  # fmt: skip
    rows.append(
        _against("cold batch of 64: wall p50",
                 *_best(result["cold_batch_of_64"], ROCKS_BLOBS, "wall_p50"), "us", 0.2)
    )  # fmt: skip
    keys = "rocksdb event keys lz4"
    for threads, measured in append.items():
        rates = [measured[name]["events_per_second"] for name in (ours, keys)]
        rows.append(
            _against(f"durable append, {threads}", keys, *rates, "events/s", 8.0, most=False)
        )
    rows.append(
        _against("one read during a merge: wall p99", "the same, idle",
                 merging["merging"]["wall_p99"], merging["idle"]["wall_p99"], "us", 1.5)
    )  # fmt: skip
    rows += _of_other_scripts(folder)
    shares = folder / "shares.json"
    told = bounds.sentences(json.loads(shares.read_text())) if shares.exists() else {}
    for row in rows:
        row["why"] = "" if row["reached"] else bounds.of_goal(row["goal"], told)
    return rows


def _of_other_scripts(folder: Path) -> list[Goal]:
    rows: list[Goal] = []

    def take(name: str, make: Callable[[dict[str, Any]], Goal]) -> None:
        if (folder / name).exists():
            rows.append(make(json.loads((folder / name).read_text())))

    take("recovery-10000000.json", lambda found: _against(
        "10 M users and 10 M logged events recovered: wall", "5 seconds",
        sorted(found["wall_seconds"])[len(found["wall_seconds"]) // 2], 5.0, "s", 1.0))  # fmt: skip
    take("write_amplification.json", lambda found: _against(
        "bytes written by merges for a byte of new events", "each once",
        found["runs"][0]["write_amplification"], 1.0, "", 5.0))  # fmt: skip
    take("training_data.json", lambda found: _against(
        "bytes of training data", "materialised per impression",
        found["joined_bytes"]["total"], found["materialised_bytes"], "B", 0.1))  # fmt: skip
    return rows


def _best(measured: dict[str, Any], peers: tuple[str, ...], what: str) -> tuple[str, float, float]:
    name = min(peers, key=lambda peer: float(measured[peer][what]))
    return name, measured["seqvault"][what], measured[name][what]


def _against(
    goal: str, peer: str, ours: float, theirs: float, unit: str, bound: float, most: bool = True
) -> Goal:
    ratio = ours / theirs
    return {
        "goal": goal,
        "peer": peer,
        "ours": ours,
        "theirs": theirs,
        "unit": unit,
        "ratio": round(ratio, 3),
        "bound": f"{'at most' if most else 'at least'} {bound:.3g}",
        "reached": ratio <= bound if most else ratio >= bound,
    }
