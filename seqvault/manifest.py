"""The manifest: one small checked file that says which files make up the store."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from seqvault.codec.primitives import checksum
from seqvault.errors import DamagedFileError, NewerFormatError, StoreNotFoundError
from seqvault.files import Files

NAME = "MANIFEST"
FORMAT = 2


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

    def save(self, files: Files, directory: str) -> None:
        """Replaces the manifest file; after a crash the old or the new one is there."""
        plain = asdict(self)
        form = FORMAT
        if not self.covers:
            plain.pop("covers")
            form = 1
        body = json.dumps(plain, separators=(",", ":")).encode()
        head = f"seqvault {form} {len(body)} {checksum(body)}\n".encode()
        files.publish(f"{directory}/{NAME}", head + body)

    @classmethod
    def load(cls, files: Files, directory: str) -> "Manifest":
        """Reads and checks the manifest.

        Raises:
            StoreNotFoundError: there is none.
            NewerFormatError: written by a newer version.
            DamagedFileError: the checksum does not fit.
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
        return cls(**json.loads(body))
