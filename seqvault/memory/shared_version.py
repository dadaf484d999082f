"""A version as bytes: its manifest, and where in shared memory its arrays are."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np

from seqvault.disk.manifest import Manifest
from seqvault.disk.segment import Segment
from seqvault.memory.field_layout import Layouts
from seqvault.memory.index import Index
from seqvault.memory.item_table import Items
from seqvault.memory.memtable import Memtable
from seqvault.memory.version import Version
from seqvault.schema import Schema


def describe(version: Version, place_of: Callable[[np.ndarray], int]) -> tuple[bytes, set[int]]:
    """Writes down what another process needs to read a version.

    Args:
        version: with arrays in shared memory.
        place_of: where in it an array begins.

    Returns:
        What ``restore`` takes, and the places of all arrays.
    """
    arrays = [*version.index.arrays, *version.memtable.arrays]
    places = [(place_of(array), array.size) for array in arrays]
    content = {"manifest": asdict(version.manifest), "arrays": places}
    return json.dumps(content).encode(), {place for place, _ in places}


def restore(
    content: bytes,
    array_at: Callable[[int, int, np.dtype], np.ndarray],
    opened: Mapping[int, Segment],
    open_segment: Callable[[int], Segment],
) -> Version:
    """A version that another process has described; its items are left out.

    Args:
        content: from ``describe``.
        array_at: the array at a place, of so many values of a type.
        opened: segments by number that need not be opened again.
        open_segment: opens another one.
    """
    told = json.loads(content)
    manifest = Manifest(**told["manifest"])
    schemas = [Schema.from_json(entry) for entry in manifest.schemas]
    dtypes = [*Index.DTYPES, *Memtable.dtypes_of(schemas[-1])]
    arrays = [
        array_at(place, size, dtype)
        for (place, size), dtype in zip(told["arrays"], dtypes, strict=True)
    ]
    many = len(Index.DTYPES)
    segments = {number: opened.get(number) or open_segment(number) for number in manifest.segments}
    return Version(
        manifest=manifest,
        schemas=schemas,
        layouts=Layouts(schemas),
        index=Index.of_arrays(arrays[:many]),
        memtable=Memtable.of_arrays(schemas[-1], arrays[many:]),
        items=Items(),
        segments=segments,
        schema_of={number: one.schema_id for number, one in segments.items()},
    )
