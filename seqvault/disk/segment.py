"""A segment: an immutable file of packed records with a checked footer."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from seqvault.codec.chunks import BLOCK, OK, PADDING
from seqvault.codec.primitives import checksum
from seqvault.codec.records import pack_array, pack_records, records_bound, unpack_array
from seqvault.disk.files import Files
from seqvault.errors import DamagedFileError, NewerFormatError

MAGIC = b"SEQVSEG\x00"
FORMAT = 2  # 1 had no coded chunks
HEADER = np.dtype(
    [("magic", "S8"), ("format", "<u4"), ("columns", "<u4"), ("number", "<u8"),
     ("schema", "<u4"), ("check", "<u4")]
)  # fmt: skip
TRAILER = np.dtype(
    [("footer", "<u8"), ("length", "<u8"), ("events", "<u8"), ("footer_check", "<u4"),
     ("check", "<u4"), ("magic", "S8")]
)  # fmt: skip
# per record; users are stored as differences, offsets follow from the lengths
FOOTER_COLUMNS = ("user", "length", "count", "kind", "arrivals", "last_time")
MOST = 1 << 31  # no record has so many events, or bytes
SAMPLE = 4096  # records by which the share of expired bytes is told
CHUNK_BYTES = 5  # of the smallest chunk of a packed array, with its length
# what a record does to the older ones of its user: comes on top of them, replaces them
# all, or replaces all but the oldest
EXTENT, BASE, TAIL = 0, 1, 2


@dataclass(frozen=True)
class Packed:
    """Records of one slice of users, ready to be written.

    Args:
        data: uint8, records one behind the other.
        users, lengths, counts, kinds, arrivals, last_times: [U] footer columns;
            ``arrivals`` is the number of events that ever arrived for the user.
    """

    data: np.ndarray
    users: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    kinds: np.ndarray
    arrivals: np.ndarray
    last_times: np.ndarray


def pack(
    users: np.ndarray,
    starts: np.ndarray,
    columns: np.ndarray,
    kinds: np.ndarray,
    arrivals: np.ndarray,
) -> Packed:
    """Packs sorted events.

    Args:
        users: int64 [U], ascending.
        starts: int64 [U + 1] bounds of their events.
        columns: int64 [C, N]: time, arrival number, field bits.
        kinds: int64 [U], EXTENT, BASE or TAIL.
        arrivals: int64 [U].
    """
    counts = np.diff(starts)
    last_times = np.zeros(len(users), np.int64)
    last_times[counts > 0] = columns[0, starts[1:][counts > 0] - 1]
    out = np.empty(records_bound(len(users), columns.shape[1], columns.shape[0]), np.uint8)
    offsets = np.empty(len(users) + 1, np.int64)
    pack_records(users, starts, columns, out, offsets)
    return Packed(
        out[: offsets[-1]],
        users,
        np.diff(offsets),
        counts,
        kinds,
        arrivals,
        last_times,
    )


def path_of(directory: str, number: int) -> str:
    """Path of a segment file."""
    return f"{directory}/segments/{number:010d}.seg"


def write(
    files: Files, path: str, number: int, schema_id: int, columns: int, parts: Iterable[Packed]
) -> int:
    """Writes a whole segment file at ``path``, synced; returns its size."""
    fd = files.create(path)
    try:
        header = np.zeros(1, HEADER)
        header["magic"], header["format"], header["columns"] = MAGIC, FORMAT, columns
        header["number"], header["schema"] = number, schema_id
        header["check"] = checksum(header.tobytes()[:-4])
        position = files.write_all(fd, header.tobytes(), 0)
        footers: list[Packed] = []
        for part in parts:
            position = files.write_all(fd, part.data, position)
            footers.append(part)
        listed = [
            np.concatenate([np.asarray(getattr(part, name), np.int64) for part in footers])
            for name in ("users", "lengths", "counts", "kinds", "arrivals", "last_times")
        ]
        count = len(listed[0])
        listed[0] = np.diff(listed[0], prepend=0)
        packed = np.empty(PADDING + count * 9 + (count // 256 + 1) * 16, np.uint8)
        body = [np.array([count], "<u8").tobytes()]
        for values in listed:
            size = pack_array(np.ascontiguousarray(values), packed)
            body += [np.array([size], "<u8").tobytes(), packed[:size].tobytes()]
        footer = b"".join(body)
        trailer = np.zeros(1, TRAILER)
        trailer["footer"], trailer["length"] = position, len(footer)
        trailer["events"], trailer["magic"] = listed[2].sum(), MAGIC
        trailer["footer_check"] = checksum(footer)
        trailer["check"] = checksum(trailer.tobytes()[:28])
        position = files.write_all(fd, footer + trailer.tobytes(), position)
        files.sync(fd)
    finally:
        files.close(fd)
    return position


class Footer(NamedTuple):
    """The footer of a segment, decoded: int64 [U] per column, in file order.

    The arguments of ``Index.add_records``, and last the time of each record's last event.
    """

    users: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    kinds: np.ndarray
    arrivals: np.ndarray
    last_times: np.ndarray


class Segment:
    """An open segment file; closed when the last reference is gone.

    The footer is read on demand and not cached: the index holds what reads need.

    Attributes:
        columns: columns per record; schema_id: their schema.
        size: bytes of the file; record_bytes: of its records.
        events: of all records.
    """

    def __init__(self, files: Files, directory: str, number: int) -> None:
        self.files, self.number, self.fd = files, number, -1
        self.path = path_of(directory, number)
        self.fd = files.open_read(self.path)
        self.size = files.size(self.fd)
        if self.size < HEADER.itemsize + TRAILER.itemsize:
            raise self._damaged("it is too short")
        header = files.read_all(self.fd, HEADER.itemsize, 0).view(HEADER)[0]
        if header["magic"] != MAGIC.rstrip(b"\x00"):
            raise self._damaged("it does not start with the segment magic")
        if header["format"] > FORMAT:
            raise NewerFormatError(
                f"{self.path} has format {header['format']}; this version reads up to {FORMAT}. "
                "Install a newer seqvault."
            )
        if header["check"] != checksum(header.tobytes()[:-4]) or header["number"] != number:
            raise self._damaged("its header is wrong")
        at = self.size - TRAILER.itemsize
        trailer = files.read_all(self.fd, TRAILER.itemsize, at).view(TRAILER)[0]
        if (
            trailer["check"] != checksum(trailer.tobytes()[:28])
            or int(trailer["footer"]) + int(trailer["length"]) != at
            or trailer.tobytes()[-8:] != MAGIC
        ):
            raise self._damaged("its trailer is wrong")
        self.columns = int(header["columns"])
        self.schema_id = int(header["schema"])
        self.events = int(trailer["events"])
        self.record_bytes = int(trailer["footer"]) - HEADER.itemsize
        self._trailer = trailer
        self.content_hash: bytes | None = None  # of records and footer, once it was asked for

    def footer(self) -> Footer:
        """Reads what the file says of its records; raises ``DamagedFileError``."""
        start, length = int(self._trailer["footer"]), int(self._trailer["length"])
        packed = self.files.read_all(self.fd, length, start)
        if checksum(packed) != self._trailer["footer_check"]:
            raise self._damaged("its footer is wrong")
        steps, lengths, *others = self._footer_arrays(packed)
        offsets = HEADER.itemsize + np.cumsum(lengths) - lengths
        footer = Footer(np.cumsum(steps), offsets, lengths, *others)
        if not _is_sound(footer):
            raise self._damaged("its footer describes impossible records")
        if int(lengths.sum()) != self.record_bytes or int(footer.counts.sum()) != self.events:
            raise self._damaged("its records do not match its header")
        return footer

    def expired_bytes(self, oldest: int) -> int:
        """About how many bytes are in records whose last event is before ``oldest``."""
        times, lengths = self._sample
        share = lengths[times < oldest].sum() / max(lengths.sum(), 1)
        return round(share * self.record_bytes)

    @cached_property
    def _sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Last times and lengths of some records, evenly spread; of all of a small segment."""
        footer = self.footer()
        step = max(1, len(footer.users) // SAMPLE)
        return footer.last_times[::step].copy(), footer.lengths[::step].copy()

    def _footer_arrays(self, footer: np.ndarray) -> list[np.ndarray]:
        """int64 [U] of each of ``FOOTER_COLUMNS``, unpacked but not looked at."""
        padded = np.concatenate([footer, np.zeros(PADDING, np.uint8)])
        count = int.from_bytes(padded[:8].tobytes(), "little")
        if count > BLOCK * (len(footer) // CHUNK_BYTES):
            raise self._damaged("its footer lists more records than it can hold")
        listed, position = [], 8
        for _ in FOOTER_COLUMNS:
            size = int.from_bytes(padded[position : position + 8].tobytes(), "little")
            if position + 8 + size > len(footer):
                raise self._damaged("its footer is cut short")
            values = np.empty(count, np.uint64)
            if unpack_array(padded[position + 8 :], size, values) != OK:
                raise self._damaged("its footer is wrong")
            listed.append(values.view(np.int64))
            position += 8 + size
        if position != len(footer):
            raise self._damaged("its footer is longer than its arrays")
        return listed

    def check_schema(self, columns_in: np.ndarray) -> None:
        """Raises ``DamagedFileError`` unless the header fits a schema of the store.

        Args:
            columns_in: int64 [S], columns of a record of each schema.
        """
        if self.schema_id >= len(columns_in):
            raise self._damaged(
                f"its schema is number {self.schema_id}, the manifest has {len(columns_in)}"
            )
        if self.columns != columns_in[self.schema_id]:
            raise self._damaged(
                f"it has {self.columns} columns, its schema {columns_in[self.schema_id]}"
            )

    def _damaged(self, what: str) -> DamagedFileError:
        return DamagedFileError(
            f"{self.path} is damaged: {what}. Restore it from a snapshot or a replica."
        )

    def __del__(self) -> None:
        if self.fd >= 0:
            self.files.close(self.fd)


def _is_sound(footer: Footer) -> bool:
    """Whether the footer is consistent, so that kernels can use it without bounds checks.

    Each bound is checked before a sum that could overflow without it.
    """
    counts, lengths = footer.counts, footer.lengths
    if ((counts < 0) | (counts >= MOST) | (lengths < 0) | (lengths >= MOST)).any():
        return False
    blocks = -(-counts // BLOCK)
    # the head, and per block its entry, its checksum and two chunks at least
    least = np.where(counts > 0, 16 + (12 + 4 + 2 * (2 + 3)) * blocks, 0)
    return bool(
        (footer.users[1:] > footer.users[:-1]).all()
        and (lengths >= least).all()
        and (lengths[counts == 0] == 0).all()
        and ((footer.kinds >= EXTENT) & (footer.kinds <= TAIL)).all()
        and (footer.arrivals >= counts).all()
    )
