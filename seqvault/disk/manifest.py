"""The manifest: a small checksummed file that lists the files of the store."""

import json
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from seqvault.codec.primitives import checksum
from seqvault.disk.files import Files
from seqvault.errors import DamagedFileError, NewerFormatError, SchemaError, StoreNotFoundError
from seqvault.schema import Schema

NAME = "MANIFEST"
FORMAT = 3
MOST_FILES = 1 << 31  # the index has 32 bits for a segment's number


@dataclass
class Manifest:
    """What a store consists of.

    Args:
        schemas: all event schemas ever, as JSON; the last one is in force.
        segments: numbers of the segment files, oldest first.
        items: numbers of the item files, oldest first.
        wal_start: number of the first log file whose events are not in segments.
        next_file: a file number never used before.
        edition: grows by one with every change.
        sources: last offset per source that is in the segments.
        retention_ms: age from which events are not read and dropped at merges; 0: none.
        max_events: newest events per user that merges keep; 0: all.
        covers: by number of a segment, the first log file whose events of the segment's
            users are not in segments; none: the same as ``wal_start``.
        wal_last: a log file that was there when this was written, and must be unless the
            log begins behind it; 0: none.
    """

    schemas: list[list[dict[str, Any]]]
    segments: list[int] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    wal_start: int = 1
    next_file: int = 1
    edition: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    retention_ms: int = 0
    max_events: int = 0
    covers: dict[str, int] = field(default_factory=dict)
    wal_last: int = 0

    def save(self, files: Files, directory: str) -> None:
        """Replaces the manifest file atomically."""
        plain = asdict(self)
        # versions before format 3 would take float32 bits for those of a float64
        form = 3 if self.wal_last or self._has_widened_floats() else 2 if self.covers else 1
        for name in ("covers", "wal_last"):
            if not plain[name]:
                plain.pop(name)
        body = json.dumps(plain, separators=(",", ":")).encode()
        head = f"seqvault {form} {len(body)} {checksum(body)}\n".encode()
        files.publish(f"{directory}/{NAME}", head + body)

    def _has_widened_floats(self) -> bool:
        """Whether a field of an earlier schema was float32 and is float64 since."""
        return any(
            was["dtype"] == "float32" and now["dtype"] == "float64"
            for earlier, later in pairwise(self.schemas)
            for was, now in zip(earlier, later, strict=False)
        )

    @classmethod
    def load(cls, files: Files, directory: str) -> "Manifest":
        """Reads and checks the manifest.

        Raises:
            StoreNotFoundError: there is none.
            NewerFormatError: written by a newer version.
            DamagedFileError: the checksum does not fit, or the content is not a manifest's.
        """
        path = f"{directory}/{NAME}"
        try:
            fd = files.open_read(path)
        except FileNotFoundError:
            raise StoreNotFoundError(
                f"no SeqVault store at {directory}; create one with a schema "
                "(SeqVault.open(path, schema=...) or `seqvault init`)."
            ) from None
        try:
            data = files.read_all(fd, files.size(fd), 0).tobytes()
        finally:
            files.close(fd)
        head, _, body = data.partition(b"\n")
        parts = head.split(b" ")
        if len(parts) < 2 or parts[0] != b"seqvault" or not parts[1].isdigit():
            raise DamagedFileError(
                f"{path} is not a SeqVault manifest; restore it from a snapshot."
            )
        if int(parts[1]) > FORMAT:
            raise NewerFormatError(
                f"{path} has format {int(parts[1])}; this version reads up to {FORMAT}. "
                "Install a newer seqvault."
            )
        expected = f"seqvault {int(parts[1])} {len(body)} {checksum(body)}".encode()
        if head != expected:
            raise DamagedFileError(
                f"{path} is damaged: its checksum does not fit; restore it from a snapshot."
            )
        try:
            manifest = cls(**json.loads(body))
        except json.JSONDecodeError as error:
            raise _malformed(
                path, f"no JSON at byte {len(head) + 1 + error.pos} ({error.msg})"
            ) from None
        except (ValueError, TypeError) as error:
            raise _malformed(path, f"from byte {len(head) + 1} on: {error}") from None
        wrong = manifest.fault()
        if wrong:
            raise _malformed(path, f"from byte {len(head) + 1} on: {wrong}")
        return manifest

    def fault(self) -> str:
        """Names the first invalid value, or "": the rest of the store relies on this check."""
        for name in ("wal_start", "next_file", "edition", "retention_ms", "max_events", "wal_last"):
            value, least = getattr(self, name), 1 if name in ("wal_start", "next_file") else 0
            if not _is_number(value) or value < least:
                return f"{name} is {value!r}, not a whole number from {least} on"
        if self.next_file > MOST_FILES:
            return f"next_file is {self.next_file}, above {MOST_FILES}: no store wrote so many"
        for name in ("segments", "items"):
            numbers = getattr(self, name)
            if not isinstance(numbers, list) or not all(map(_is_number, numbers)):
                return f"{name} is {numbers!r}, not a list of numbers"
            if len(set(numbers)) != len(numbers) or not all(
                0 < number < self.next_file for number in numbers
            ):
                return f"{name} has numbers twice, or not below next_file {self.next_file}"
        for name in ("sources", "covers"):
            marks = getattr(self, name)
            if not isinstance(marks, dict) or not all(map(_is_number, marks.values())):
                return f"{name} is {marks!r}, not an object of numbers"
        unknown = set(self.covers) - {str(number) for number in self.segments}
        if unknown:
            return f"covers names {sorted(unknown)}, which are not segments"
        try:
            schemas = [Schema.from_json(entry) for entry in self.schemas]
            for old, new in pairwise(schemas):
                new.check_extends(old)
        except (SchemaError, TypeError, AttributeError, ValueError) as error:
            return f"schemas are wrong: {error}"
        return "" if schemas else "schemas are missing"


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _malformed(path: str, what: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path} is damaged, though its checksum fits: {what}. Restore it from a snapshot."
    )
