"""What bounds each goal, in words, from the shares that ``shares`` measured."""

from collections.abc import Mapping
from typing import Any

Shares = Mapping[str, Any]


def sentences(shares: Shares) -> dict[str, str]:
    """What bounds a goal, by the beginning of the goal's name."""
    one, batch = shares["read of 1, CPU us"], shares["read of 64, CPU us"]
    told = {
        "batch of 64": _read(batch) + _fields(shares["read of 64 by field, CPU us"]),
        "one user: wall p50": _read(one),
        "cold batch of 64": _cold(shares),
        "durable append": _append(shares["append of 1000 events, us"]),
        "10 M users": _recovery(shares),
    }
    merging = shares["one read during merges, us"]
    if merging:
        told["one read during a merge"] = _waits(merging, ("idle", "merging"))
        told["one user: wall p99"] = _waits(merging, ("idle",))
    return told


def of_goal(goal: str, told: Mapping[str, str]) -> str:
    """The sentence for a goal, empty if there is none."""
    return next((text for start, text in told.items() if goal.startswith(start)), "")


def _read(part: Mapping[str, float]) -> str:
    whole, fill = part["read"], part["fetch, check, unpack and pad"]
    pread, check = part["of that pread"], part["of that checksums"]
    unpack = fill - pread - check
    return (
        f"of {whole:g} us CPU: pread {pread / whole:.0%}, checksums {check / whole:.0%}, "
        f"unpack and pad {unpack / whole:.0%} ({1000 * unpack / part['values unpacked']:.1f} ns a "
        f"value), look-up {part['look up'] / whole:.0%}, views "
        f"{part['views and the batch'] / whole:.0%}, the rest (room, calls, caches that the parts "
        f"by themselves find warm) {part['rest'] / whole:.0%}; one copy of the answer is "
        f"{part['copy of the answer']:g} us"
    )


def _fields(part: Mapping[str, float]) -> str:
    adds = [us for name, us in part.items() if name != "no field"]
    return (
        f"; without any field a read takes {part['no field']:g} us, each field adds {min(adds):g} "
        f"to {max(adds):g}"
    )


def _cold(shares: Shares) -> str:
    part, opened = shares["cold read of 64, us"], shares["first read after opening, CPU us"]
    return (
        f"of {part['read']:g} us wall, {part['read, CPU']:g} CPU, to ask the kernel for the "
        f"records and to read them takes {part['ask for the records'] + part['pread']:g} by itself "
        f"({part['ask for the records, CPU'] + part['pread, CPU']:g} CPU), whatever is done with "
        f"them; the first read after opening takes {opened['first'] - opened['second']:.1f} us CPU "
        "more than the second"
    )


def _append(part: Mapping[str, float]) -> str:
    steps = (
        "check columns", "lay out and checksum", "look users up, lay down in memory", "write",
        "make visible",
    )  # fmt: skip
    return (
        f"of {part['append']:g} us wall fdatasync is {part['fdatasync']:g}; CPU "
        f"{part['append, CPU']:g} us: "
        + ", ".join(f"{step} {part[f'{step}, CPU']:g}" for step in ("fdatasync", *steps))
        + f"; without any CPU of ours one thread would do {1e9 / part['fdatasync']:,.0f} events/s"
    )


def _recovery(shares: Shares) -> str:
    name = next(key for key in shares if key.startswith("recovery of"))
    parts = dict(shares[name])
    whole = parts.pop("open")
    most = sorted(parts.items(), key=lambda item: -item[1])[:4]
    return f"{name.removesuffix(', s')}: of {whole:g} s " + ", ".join(
        f"{step} {seconds / whole:.0%}" for step, seconds in most
    )


def _waits(merging: Mapping[str, Mapping[str, float]], which: tuple[str, ...]) -> str:
    return "p99 less waits for a core: " + ", ".join(
        f"{name} {merging[name]['wall less waits for a core p99']:g} us "
        f"of {merging[name]['wall p99']:g}"
        for name in which
    )
