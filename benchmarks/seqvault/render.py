"""Results as Markdown tables, for ``docs/seqvault/benchmarks.md``."""

from collections.abc import Sequence
from typing import Any

CLOCKS = ("wall_p50", "wall_p99", "cpu_p50", "cpu_p99")


def markdown(result: dict[str, Any]) -> str:
    """All tables of one result."""
    machine = result["machine"]
    head = (
        f"{result['source']}: {result['users']:,} users, {result['events']:,} events, "
        f"{result['fields']} fields, {result['raw_bytes_per_event']} bytes raw; {machine['cpu']}, "
        f"{machine['cores']} cores, load {machine['load'][0]}, seed {result['seed']}"
    )
    parts = [f"### {head}", goals(result["goals"]), _sizes(result)]
    titles = {
        "one_user": "One user, warm, us",
        "batch_of_64": "Batch of 64, warm, us",
        "one_user_alone": "One user, each store by itself, us",
        "batch_of_64_alone": "Batch of 64, each store by itself, us",
        "cold_one_user": "One user, from the disk, us",
        "cold_batch_of_64": "Batch of 64, from the disk, us",
    }
    for key, title in titles.items():
        parts.append(_clocks(title, result[key]))
    for threads, measured in result["durable_append"].items():
        parts.append(
            _table(
                [f"Durable appends of 1000 events, {threads}", "events/s", "CPU us per 1000"],
                [
                    [name, f"{one['events_per_second']:,}", one["cpu_us_per_1000"]]
                    for name, one in measured.items()
                ],
            )
        )
    parts.append(_mixed(result))
    for name, why in result["left_out"].items():
        parts.append(f"{name}: {why}.")
    return "\n\n".join(parts) + "\n"


def put_into(text: str, result: dict[str, Any]) -> str:
    """A page with the tables of this result between the two comments that are there for it.

    Raises:
        ValueError: the page has no place for results of this source.
    """
    begin, end = f"<!-- tables: {result['source']} -->\n", "<!-- end of tables -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page lacks the lines {begin.strip()!r} and {end!r}; add them.")
    return f"{before}{begin}\n{markdown(result)}\n{end}{after}"


def goals(rows: Sequence[dict[str, Any]]) -> str:
    """The goals table."""
    return _table(
        ["goal", "peer", "SeqVault", "peer's", "unit", "ratio", "goal is", "reached", "bounded by"],
        [
            [row["goal"], row["peer"], _number(row["ours"]), _number(row["theirs"]), row["unit"],
             row["ratio"], row["bound"], "yes" if row["reached"] else "no", row.get("why", "")]
            for row in rows
        ],
    )  # fmt: skip


def _sizes(result: dict[str, Any]) -> str:
    sizes = result["bytes_per_event"]
    return _table(["bytes per event", ""], [[name, size] for name, size in sizes.items()])


def _clocks(title: str, measured: dict[str, Any]) -> str:
    heads = [title, *(clock.replace("_", " ") for clock in CLOCKS)]
    return _table(heads, [[n, *(one[clock] for clock in CLOCKS)] for n, one in measured.items()])


def _mixed(result: dict[str, Any]) -> str:
    rows = []
    for name, own in result["reads_under_appends"].items():
        idle, busy = own["idle"], own["appending"]
        rows.append([f"{name}, {own['events_per_second']:,} events/s arriving", idle["wall_p50"],
                     idle["wall_p99"], busy["wall_p50"], busy["wall_p99"]])  # fmt: skip
    merging = result["reads_during_merges"]
    rows.append(["seqvault, merging without a pause", merging["idle"]["wall_p50"],
                 merging["idle"]["wall_p99"], merging["merging"]["wall_p50"],
                 merging["merging"]["wall_p99"]])  # fmt: skip
    heads = ["One user while the store is written, wall us", "idle p50", "idle p99", "p50", "p99"]
    return _table(heads, rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
