"""Recovery at open: loads what the manifest names, replays the log, removes orphaned files."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np

from seqvault.disk import wal
from seqvault.disk.files import Files, disk_full_is_typed
from seqvault.disk.manifest import NAME as MANIFEST_NAME
from seqvault.disk.manifest import Manifest
from seqvault.disk.segment import Segment
from seqvault.disk.wal import SPARE, SPARE_FILES
from seqvault.errors import (
    DamagedFileError,
    StoreFailedError,
    StoreLockedError,
    StoreNotFoundError,
)
from seqvault.memory.shared_memory import wait_for_former
from seqvault.memory.store_state import State
from seqvault.schema import Schema


def lock_for_writing(files: Files, path: str, schema: Schema | None) -> int:
    """Takes the writer's lock, making the directories; returns its descriptor.

    Raises:
        StoreNotFoundError: no store there and no schema to make one.
        StoreLockedError: another writer holds it.
    """
    if schema is None and not files.exists(f"{path}/{MANIFEST_NAME}"):
        raise StoreNotFoundError(
            f"no SeqVault store at {path}; create one with a schema "
            "(SeqVault.open(path, schema=...) or `seqvault init`)."
        )
    with disk_full_is_typed(f"open {path}"):
        for folder in ("", "/segments", "/wal", "/items"):
            files.make_directory(path + folder)
        if not files.exists(f"{path}/{MANIFEST_NAME}"):
            # directories may be there that an attempt before this one made and did not sync
            for folder in (path, os.path.dirname(path)):
                files.sync_directory(folder)
        try:
            lock = files.lock(f"{path}/LOCK")
        except BlockingIOError:
            raise StoreLockedError(
                f"the store at {path} is already open for writing; close it there, or "
                "open it here with read_only=True."
            ) from None
        wait_for_former(files, path)
        return lock


def open_for_writing(
    state: State, schema: Schema | None, retention_ms: int | None, max_events: int | None
) -> tuple[wal.WalWriter, list[str]]:
    """Loads or creates the store and starts a log file. The caller holds the writer's lock.

    Returns:
        The log's present file, and files that the log may use again.

    Args:
        state: to be filled.
        schema, retention_ms, max_events: as of ``SeqVault.open``.
    """
    files, path = state.files, state.path
    with disk_full_is_typed(f"open {path}"):
        if not files.exists(f"{path}/{MANIFEST_NAME}"):
            assert schema is not None
            Manifest(schemas=[schema.to_json()]).save(files, path)
        covered = state.load(configured(files, path, schema, retention_ms, max_events))
        last, end, data = replay(state, covered)
        number = max(last + 1, state.manifest.wal_start)
        if data is not None and end == wal.FIRST:
            number = last  # a file without events is rewritten
        elif data is not None and not wal.is_sealed(data, end, last):
            wal.repair(files, path, last, data, end)
        names = [name for name in files.list_directory(f"{path}/wal") if name.endswith(SPARE)]
        remove_orphaned_files(state, last, set(names[:SPARE_FILES]))
        spares = [f"{path}/wal/{name}" for name in names[:SPARE_FILES]]
        writer = wal.WalWriter(files, path, number, spares.pop() if spares else "")
        writer.begin()
        try:  # from now on the loss of the file is noticed; before it may take no frame
            old = state.manifest
            manifest = replace(old, wal_last=number, edition=old.edition + 1)
            manifest.save(files, path)
            state.version = replace(state.version, manifest=manifest)
        except BaseException:
            writer.close()
            raise
        return writer, spares


def open_for_reading(state: State, opened: Mapping[int, Segment] | None = None) -> None:
    """Loads the store as it is on disk now; another process may be writing to it.

    Args:
        state: to be filled.
        opened: segments by number that need not be opened again.
    """
    for _ in range(20):  # the writer may publish while we look
        manifest = Manifest.load(state.files, state.path)
        try:
            replay(state, state.load(manifest, opened))
        except (FileNotFoundError, DamagedFileError):
            if Manifest.load(state.files, state.path).edition == manifest.edition:
                raise
            continue
        if Manifest.load(state.files, state.path).edition == manifest.edition:
            return
    raise StoreFailedError(f"{state.path} changes faster than it can be opened; try again.")


def refresh(state: State) -> bool:
    """Updates a read-only store to what is on disk now; returns whether anything changed.

    The new state is loaded separately and then swapped in, so that readers see either the old or
    the new one, and the old one after an error. The caller holds
    ``state.merging``.
    """
    fresh = State(state.path, state.files, True, state.clock)
    open_for_reading(fresh, state.segments)
    before, after = state.version, fresh.version
    state.adopt(fresh)
    return (before.manifest.edition, before.memtable.size) != (
        after.manifest.edition, after.memtable.size,
    )  # fmt: skip


def configured(
    files: Files,
    path: str,
    schema: Schema | None,
    retention_ms: int | None,
    max_events: int | None,
) -> Manifest:
    """Applies a new schema and new limits to the manifest, if they differ."""
    old = Manifest.load(files, path)
    new = replace(
        old,
        retention_ms=old.retention_ms if retention_ms is None else retention_ms,
        max_events=old.max_events if max_events is None else max_events,
    )
    present = Schema.from_json(old.schemas[-1])
    if schema is not None and schema != present:
        schema.check_extends(present)
        new = replace(new, schemas=[*old.schemas, schema.to_json()])
    if new != old:
        new = replace(new, edition=old.edition + 1)
        new.save(files, path)
    return new


def replay(state: State, covered: np.ndarray) -> tuple[int, int, np.ndarray | None]:
    """Replays the log; returns the last file's number, valid length and bytes.

    Args:
        state: what ``State.load`` has filled.
        covered: what it returned.

    Raises:
        DamagedFileError: acknowledged events cannot be read, or a file is missing that
            the manifest or another log file says is there.
    """
    files, manifest = state.files, state.manifest
    names = []
    if files.exists(f"{state.path}/wal"):  # copies may lack empty directories
        names = files.list_directory(f"{state.path}/wal")
    numbers = sorted(int(name[:-4]) for name in names if name.endswith(".wal"))
    numbers = [number for number in numbers if number >= manifest.wal_start]
    first, last = manifest.wal_start, max([manifest.wal_last, *numbers])
    # their count first: a damaged manifest can ask for more than a list holds
    whole = len(numbers) == max(0, last + 1 - first)
    if not whole or numbers != list(range(first, last + 1)):
        raise DamagedFileError(
            f"log files are missing in {state.path}/wal: there are {numbers}, there must be "
            f"all from {first} to {last}. Restore the store from a snapshot or a replica."
        )
    sizes = [wal.size_of(files, wal.path_of(state.path, number)) for number in numbers]
    width = sum(dtype.itemsize for dtype in state.schemas[0].columns.values())
    state.memtable.make_room(sum(sizes) // width)
    number, end, data, linked = 0, 0, None, True
    for number in numbers:  # grows where a writer begins a file meanwhile
        data = wal.read_file(files, state.path, number)
        end = wal.FIRST
        path = wal.path_of(state.path, number)
        for frame in wal.scan(data, number, path, sealed=number != numbers[-1]):
            if not linked and not _linked_by_now(state, number - 1):
                raise wal.malformed(path, frame.start, "came before the file before said so")
            columns = decode_frame(frame, state.schemas, path)
            columns = not_covered(state, columns, covered, number)
            state.stage(columns, number)
            state.show([(len(columns["user_id"]), frame.source, frame.offset)])
            end = frame.end
        goes_on = wal.goes_on(data, end, number)
        # one that says nothing of the next was closed, or a crash came in between
        linked = goes_on or number < manifest.wal_last or not manifest.wal_last
        if number == numbers[-1] and goes_on:
            if not files.exists(wal.path_of(state.path, number + 1)):
                raise DamagedFileError(
                    f"{wal.path_of(state.path, number + 1)} is missing: the previous log file "
                    "refers to it. Restore the store from a snapshot or a replica."
                )
            numbers.append(number + 1)
    return number, end, data


def _linked_by_now(state: State, number: int) -> bool:
    """Re-reads whether a log file has a successor; a writer may have just added it."""
    data, end = wal.read_file(state.files, state.path, number), wal.FIRST
    for frame in wal.scan(data, number, wal.path_of(state.path, number), sealed=True):
        end = frame.end
    return wal.goes_on(data, end, number)


def not_covered(
    state: State, columns: dict[str, np.ndarray], covered: np.ndarray, number: int
) -> dict[str, np.ndarray]:
    """Mask of the events of log file ``number`` that are not yet in segments."""
    if not len(covered):
        return columns
    slots = state.index.users.find(columns["user_id"])
    stored = (slots >= 0) & (slots < len(covered))
    stored[stored] = covered[slots[stored]] > number
    return {name: column[~stored] for name, column in columns.items()} if stored.any() else columns


def decode_frame(frame: wal.Frame, schemas: list[Schema], path: str) -> dict[str, np.ndarray]:
    """Columns of a logged append under the schema in force, the last one.

    Raises:
        DamagedFileError: the frame does not hold what it says.
    """
    if frame.schema_id >= len(schemas):
        raise wal.malformed(
            path, frame.start, f"has schema {frame.schema_id}, the manifest has {len(schemas)}"
        )
    schema = schemas[frame.schema_id]
    need = frame.count * sum(dtype.itemsize for dtype in schema.columns.values())
    if need != len(frame.payload):
        raise wal.malformed(
            path,
            frame.start,
            f"has {len(frame.payload)} bytes of events; {frame.count} events take {need}",
        )
    columns, position = {}, 0
    for name in ("user_id", "timestamp", *schema.names):
        dtype = schema.dtype(name)
        size = frame.count * dtype.itemsize
        columns[name] = np.frombuffer(frame.payload[position : position + size], dtype)
        position += size
    for field in schemas[-1].fields:  # the frame may be older than the schema in force
        if field.name not in columns:
            columns[field.name] = np.full(frame.count, field.default, field.dtype)
    return columns


def remove_orphaned_files(state: State, last_log: int, spares: set[str]) -> None:
    """Removes orphaned files of a crash: those that the manifest does not name."""
    manifest = state.manifest
    for name in state.files.list_directory(state.path):
        if name.startswith(f"{MANIFEST_NAME}.") and name.endswith(".tmp"):
            _remove(state, f"{state.path}/{name}")
    keep = {
        "segments": {f"{n:010d}.seg" for n in manifest.segments},
        "items": {f"{n:010d}.items" for n in manifest.items},
        "wal": {f"{n:010d}.wal" for n in range(manifest.wal_start, last_log + 1)} | spares,
    }
    for folder, names in keep.items():
        for name in state.files.list_directory(f"{state.path}/{folder}"):
            if name not in names and name.split(".")[0].isdigit():
                _remove(state, f"{state.path}/{folder}/{name}")


def _remove(state: State, path: str) -> None:
    with suppress(FileNotFoundError):  # an earlier writer that was late removed it itself
        state.files.unlink(path)
