"""Renders the README's table of results from the committed raw results.

python -m benchmarks.readme_table
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.between_marks import between_marks

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
START, END = "<!-- results: python -m benchmarks.readme_table -->\n", "<!-- end of results -->"


def table() -> str:
    """The table in Markdown; every cell comes from a file in ``benchmarks/``."""
    rows = [long_histories(), layers(), *store(), auc(), demo()]
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "| what | LASER | beside it | script |\n|---|---|---|---|\n" + "".join(lines)


def long_histories() -> tuple[str, ...]:
    result = read("paper/results/long.json")
    found = {row["system"]: f"{row['auc']:.3f}" for row in result["rows"]}
    return (
        f"AUC where clicks follow from clicks 100 to 4,000 events back: a generated log, "
        f"{result['rows'][0]['length']:,} events read, {len(result['seeds'])} seeds",
        found["laser_lean"],
        f"of as many multiply-accumulates: target attention (DIN) {found['din']}, with LASER's "
        f"start {found['din_sharp']}",
        "[results](docs/results.md)",
    )


def layers() -> tuple[str, ...]:
    times = {
        case["system"]: case["wall_ms_per_request"]
        for case in read("layers/results/tensorflow_cpu.json")["times"]
        if (case["length"], case["candidates"], case["pass"]) == (1000, 10, "forward")
    }
    return (
        "encoding 1000 events for 10 candidates, one layer each, d=128, 2 CPU cores",
        f"{times['laser']:.1f} ms",
        f"HSTU {times['hstu']:.1f} ms, LASER in the paper's order {times['paper_form']:.1f} ms",
        "[layers](benchmarks/layers/README.md)",
    )


def store() -> list[tuple[str, ...]]:
    result = read("seqvault/results/compare-kuairand_pure.json")
    page = "[seqvault](docs/seqvault/benchmarks.md)"
    micro = {name: times["wall_p50"] for name, times in result["batch_of_64"].items()}
    size = result["bytes_per_event"]
    return [
        (
            "reading 64 users' histories from KuaiRand, median",
            f"{micro['seqvault']:.0f} µs",
            f"LMDB {micro['lmdb raw']:.0f} µs (not compressed), RocksDB "
            f"{micro['rocksdb blob zstd']:.0f} µs (zstd), Redis {micro['redis blob']:.0f} µs",
            page,
        ),
        (
            f"disk per event of KuaiRand, {result['raw_bytes_per_event']} bytes raw",
            f"{size['seqvault']:.1f} bytes",
            f"LMDB {size['lmdb raw']:.1f} (not compressed), RocksDB "
            f"{size['rocksdb blob zstd']:.1f} (zstd)",
            page,
        ),
    ]


def auc() -> tuple[str, ...]:
    test = read("kuairand/results/seed17.json")["evaluation"][""]
    rates = read("kuairand/results/counters.json")["test_auc"]
    return (
        "AUC of the whole pipeline on KuaiRand-Pure, tested on later days",
        f"{test['auc']:.3f}",
        f"click rate by item and scenario {rates['item_id x scenario']['frozen']:.3f}, "
        f"by user and scenario {rates['user_id x scenario']['frozen']:.3f}",
        "[kuairand](benchmarks/kuairand/README.md)",
    )


def demo() -> tuple[str, ...]:
    result = read("demo/results.json")
    return (
        "`make demo` from an empty clone, 2 CPU cores",
        f"{result['seconds']['all'] / 60:.0f} minutes",
        f"{result['largest_process_gib']:.1f} GiB the largest process",
        "[demo](benchmarks/demo)",
    )


def read(path: str) -> Any:
    return json.loads((HERE / path).read_text(encoding="utf-8"))


def rendered(text: str) -> str:
    """The README with its table as the results say now."""
    return between_marks(text, START, END, table())


if __name__ == "__main__":
    README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {README.name}")
