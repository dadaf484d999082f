"""Which bytes of a store's file mean what, by ``docs/seqvault/format.md`` alone."""

import struct
from typing import NamedTuple

WAL_HEADER, WAL_FRAME = 32, 56
WAL_MAGIC = 0x4D524656
SEAL, NEXT = 2, 3


class Region(NamedTuple):
    """Bytes ``start`` to ``stop`` of a file, and what they are."""

    name: str
    start: int
    stop: int


def regions_of(path: str, data: bytes) -> list[Region]:
    """All bytes of a sound file, cut into regions of one meaning.

    A file of a kind that is not known here is one region named after its suffix.
    """
    if path.endswith("MANIFEST"):
        line = data.index(b"\n") + 1
        regions = [Region("manifest line", 0, line), Region("manifest body", line, len(data))]
    elif path.endswith(".seg"):
        regions = _segment(data)
    elif path.endswith(".items"):
        regions = [Region("items head", 0, 24), Region("items body", 24, len(data))]
    elif path.endswith(".wal"):
        regions = _log(data)
    else:
        regions = [Region(path.rsplit("/", 1)[-1].rsplit(".", 1)[-1], 0, len(data))]
    return [region for region in regions if region.stop > region.start]


def _segment(data: bytes) -> list[Region]:
    footer, length = struct.unpack_from("<QQ", data, len(data) - 40)
    regions = [Region("segment header", 0, 32)]
    position = 32
    while position < footer:
        found = _record(data, position)
        regions += found
        position = found[-1].stop
    return [
        *regions,
        Region("segment footer", footer, footer + length),
        Region("segment trailer", footer + length, len(data)),
    ]


def _record(data: bytes, start: int) -> list[Region]:
    (count,) = struct.unpack_from("<I", data, start + 8)
    blocks = -(-count // 256)
    directory = start + 12
    behind = directory + 12 * blocks
    ends = [struct.unpack_from("<I", data, directory + 12 * b + 8)[0] for b in range(blocks)]
    regions = [
        Region("segment record head", start, directory),
        Region("segment directory", directory, behind + 4),
    ]
    first = behind + 4
    for end in ends:
        chunks = first + 4
        regions += [
            Region("segment block head", first, chunks),
            Region("segment block chunks", chunks, start + end),
        ]
        first = start + end
    stop = start + -(-(first - start) // 8) * 8
    return [*regions, Region("segment record padding", first, stop)]


def _log(data: bytes) -> list[Region]:
    regions, position = [Region("wal header", 0, WAL_HEADER)], WAL_HEADER
    while position + WAL_FRAME <= len(data):
        magic, _, length, kind = struct.unpack_from("<IIIH", data, position)
        if magic != WAL_MAGIC:
            break
        end = position + -(-(WAL_FRAME + length) // 8) * 8
        if kind in (SEAL, NEXT):
            regions.append(Region("wal seal" if kind == SEAL else "wal next", position, end))
        else:
            body = position + WAL_FRAME
            regions.append(Region("wal frame head", position, body))
            regions.append(Region("wal frame body", body, end))
        position = end
    if not any(region.name == "wal seal" for region in regions):
        # damage to the very last frame cannot be told from a crash: format.md, "Log"
        regions = [r for r in regions if r.stop < position and r.start < _last(regions)]
    return [*regions, Region("wal room", position, len(data))]


def _last(regions: list[Region]) -> int:
    """Where the last frame starts."""
    return max((r.start for r in regions if r.name == "wal frame head"), default=0)
