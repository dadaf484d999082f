"""The histories that every store holds, and the plain form in which peers keep them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

LAST_N = 1000
Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Histories:
    """Events sorted by (user, time), and where each user's begin.

    Args:
        source: ``"generated"`` or the name of a folder.
        events: columns, ``user_id`` and ``timestamp`` among them.
        users: int64 [U], ascending.
        starts: int64 [U + 1], bounds of each user's events.
    """

    source: str
    events: Columns
    users: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, source: str, events: Columns) -> "Histories":
        """From columns in any order."""
        order = np.lexsort((events["timestamp"], events["user_id"]))
        events = {name: values[order] for name, values in events.items()}
        users, first = np.unique(events["user_id"], return_index=True)
        return cls(source, events, users, np.append(first, len(order)))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def of_user(self, place: int) -> Columns:
        """Columns of the user at a place, the user's id left out."""
        part = slice(self.starts[place], self.starts[place + 1])
        return {name: self.events[name][part] for name in self.names}

    @property
    def names(self) -> list[str]:
        """Fields of an event, the time among them."""
        return [name for name in self.events if name != "user_id"]

    @property
    def width(self) -> int:
        """Bytes of an event as plain values."""
        return sum(self.events[name].itemsize for name in self.names)


def generate(users: int, seed: int) -> Histories:
    """Events of 10 fields and 34 bytes beside the user: skewed items, long-tailed histories."""
    rng = np.random.default_rng(seed)
    counts = np.clip(rng.lognormal(np.log(537) - 0.5, 1.0, users).astype(int), 1, 20000)
    total = int(counts.sum())
    gaps = rng.exponential(300_000, total).astype(np.int64)
    ends = np.cumsum(counts)
    running = np.cumsum(gaps)
    base = np.repeat(np.concatenate([[0], running[ends[:-1] - 1]]), counts)
    times = 1_600_000_000_000 + running - base
    items = (rng.zipf(1.2, total) % (1 << 24)).astype(np.int64) * 65537 + (1 << 39)
    events = {
        "user_id": np.repeat(np.arange(users, dtype=np.int64) * 7919 + 10**12, counts),
        "timestamp": times,
        "item_id": items,
        "author_id": ((items * 2654435761) % (1 << 31)).astype(np.int32),
        "category": (items % 300).astype(np.int16),
        "scenario": rng.integers(0, 3, total).astype(np.int8),
        "action": rng.choice(8, total, p=[0.6, 0.2, 0.1, 0.04, 0.02, 0.02, 0.01, 0.01]).astype(
            np.int8
        ),
        "duration": rng.integers(1000, 60000, total).astype(np.int32),
        "watch": rng.integers(0, 60000, total).astype(np.int32),
        "device": rng.integers(0, 6, total).astype(np.int8),
        "hour": ((times // 3_600_000) % 24).astype(np.int8),
    }
    return Histories.of("generated", events)


def load(path: str, fields: list[str]) -> Histories:
    """Events of a Parquet file, or of ``events.parquet`` in a folder; times in s or ms."""
    file = Path(path)
    file = file / "events.parquet" if file.is_dir() else file
    names = ["user_id", "timestamp", *fields]
    table = pq.read_table(file, columns=names)
    events = {name: table.column(name).to_numpy().copy() for name in names}
    events["user_id"] = events["user_id"].astype(np.int64)
    seconds = int(events["timestamp"].max()) < 10**11
    events["timestamp"] = events["timestamp"].astype(np.int64) * (1000 if seconds else 1)
    return Histories.of(file.resolve().parent.name, events)


def pieces(table: np.ndarray) -> list[bytes]:
    """The rows of a uint8 table as bytes."""
    whole, width = table.tobytes(), table.shape[1]
    return [whole[at : at + width] for at in range(0, len(whole), width)]


class Blobs:
    """A user's history as one packed blob: a struct of arrays, newest event first.

    Newest first, so that a read copies the first part of each array as it is.
    """

    def __init__(self, histories: Histories) -> None:
        self.dtypes = {name: histories.events[name].dtype for name in histories.names}
        self.width = histories.width

    def pack(self, columns: Columns) -> bytes:
        """The blob of events in order of time."""
        return b"".join(columns[name][::-1].tobytes() for name in self.dtypes)

    def rows(self, columns: Columns) -> np.ndarray:
        """uint8 [events, bytes]: what a store with an entry per event holds."""
        parts = [
            np.ascontiguousarray(columns[name]).view(np.uint8).reshape(len(columns[name]), -1)
            for name in self.dtypes
        ]
        return np.concatenate(parts, axis=1)

    def empty(self, users: int) -> Columns:
        """Arrays for an answer, [users, LAST_N] zeros."""
        return {name: np.zeros((users, LAST_N), dtype) for name, dtype in self.dtypes.items()}

    def fill(self, out: Columns, row: int, blob: bytes | memoryview) -> None:
        """Unpacks a blob into one row of an answer."""
        count, at = len(blob) // self.width, 0
        n = min(count, LAST_N)
        for name, dtype in self.dtypes.items():
            out[name][row, :n] = np.frombuffer(blob, dtype, n, at)
            at += count * dtype.itemsize

    def fill_rows(self, out: Columns, row: int, entries: bytes) -> None:
        """Unpacks entries, one behind the other, newest first, into one row of an answer."""
        table = np.frombuffer(entries, np.dtype([*self.dtypes.items()]))[:LAST_N]
        for name in self.dtypes:
            out[name][row, : len(table)] = table[name]

    def merged(self, old: bytes | memoryview | None, columns: Columns) -> bytes:
        """The blob with newer events in front: what an append to a blob writes."""
        if old is None:
            return self.pack(columns)
        count, at, parts = len(old) // self.width, 0, []
        for name, dtype in self.dtypes.items():
            parts += [columns[name][::-1].tobytes(), bytes(old[at : at + count * dtype.itemsize])]
            at += count * dtype.itemsize
        return b"".join(parts)
