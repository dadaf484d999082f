"""Damaged, missing, stale and strange files: the right answer or a typed error."""

import random
import struct
import tempfile
from typing import Any

import pytest

from seqvault import SeqVault, errors, wal
from seqvault.testing.crash_run import PATH
from seqvault.testing.file_regions import regions_of
from seqvault.testing.memory_files import MemoryFiles
from seqvault.testing.oracle import Oracle
from seqvault.testing.workload import SCHEMA, random_events

TYPED = (errors.DamagedFileError, errors.NewerFormatError)


def filled(disk: MemoryFiles) -> Oracle:
    """A store of every kind of file: segments, items, a sealed log file and one not sealed."""
    oracle, rng = Oracle(), random.Random(5)
    vault = SeqVault.open(PATH, schema=SCHEMA, files=disk)
    for offset, count in enumerate((1700, 300, 90, 90, 5)):
        events = random_events(rng, count)
        vault.append(events, source="log-0", offset=offset)
        oracle.add(events)
        if count >= 300:
            vault.merge()
    vault.put_items({"item_id": [1, 2], "value": [10, 20]})
    oracle.items = {1: 10, 2: 20}
    return oracle  # never closed: the log ends without a seal


@pytest.fixture
def whole(monkeypatch):
    monkeypatch.setattr(wal, "FILE_SIZE", 1 << 12)
    disk = MemoryFiles()
    oracle = filled(disk)
    return disk.after_crash(random.Random(0), "all"), oracle


def outcome(disk: MemoryFiles, oracle: Oracle, write: bool) -> str:
    """What opening, reading and checking everything says: "", or the error's name.

    Raises:
        AssertionError: a wrong answer.
    """
    return _outcome(PATH, oracle, read_only=not write, files=disk)


def outcome_of_real_files(disk: MemoryFiles, oracle: Oracle) -> str:
    """The same, read-only, with the files as real ones, which are read another way."""
    with tempfile.TemporaryDirectory() as folder:
        disk.write_to(folder, PATH)
        return _outcome(folder, oracle, read_only=True)


def _outcome(path: str, oracle: Oracle, **options: Any) -> str:
    try:
        with SeqVault.open(path, **options) as vault:
            wrong = oracle.difference(vault)
            assert not wrong, wrong
            vault.verify()
            return ""
    except TYPED as error:
        assert path in str(error) and len(str(error)) > 40
        return type(error).__name__


def test_one_flipped_bit_in_every_region_of_every_file(whole):
    """Eight bytes of each region, more of large ones, and in each any of its bits."""
    disk, oracle = whole
    rng = random.Random(0)
    noticed: dict[str, int] = {}
    harmless: dict[str, int] = {}
    for path in sorted(disk.names):
        for region in regions_of(path, disk.content(path).tobytes()):
            size = region.stop - region.start
            many = min(size, 8 + size // 128)
            for place in rng.sample(range(region.start, region.stop), many):
                bit = 8 * place + rng.randrange(8)
                damaged = disk.after_crash(rng, "all")
                damaged.flip_bit(path, bit)
                try:
                    real = ""
                    if path.endswith(".seg"):  # only these are read another way
                        real = outcome_of_real_files(damaged, oracle)
                    found = outcome(damaged, oracle, write=rng.random() < 0.5)
                    assert found == real or not path.endswith(".seg")
                except AssertionError as error:
                    raise AssertionError(f"bit {bit} of {path}, {region.name}") from error
                counts = noticed if found else harmless
                counts[region.name] = counts.get(region.name, 0) + 1
    assert sum(noticed.values()) > 500
    # bytes that carry nothing may be what they like; all others must be noticed, except
    # in the log's last frame, where damage looks like a crash in the middle of an append
    carry_nothing = {"wal room", "spare", "segment record padding"}
    assert not set(harmless) - carry_nothing
    for name in ("manifest line", "manifest body", "segment header", "segment footer",
                 "segment trailer", "segment record head", "segment directory",
                 "segment block head", "segment block chunks", "items head", "items body",
                 "wal header", "wal frame head", "wal frame body", "wal seal"):  # fmt: skip
        assert noticed[name] >= 4, name


@pytest.mark.parametrize("kind", ["MANIFEST", ".seg", ".items", ".wal"])
def test_a_file_cut_short_or_longer_is_noticed(whole, kind):
    disk, oracle = whole
    rng = random.Random(1)
    for path in sorted(name for name in disk.names if name.endswith(kind)):
        content = disk.content(path).tobytes()
        last = path == max(name for name in disk.names if name.endswith(".wal"))
        used = len(content.rstrip(b"\0")) if last else len(content)
        sizes = {0, 1, used // 2, used - 1, *range(512, used, 512)}
        for size in sorted(sizes):
            cut = disk.after_crash(rng, "all")
            cut.replace(path, content[:size])
            if last:
                continue  # see test_a_torn_append_is_left_out_and_those_before_it_stay
            assert outcome(cut, oracle, write=False), (path, size)
        longer = disk.after_crash(rng, "all")
        longer.replace(path, content + bytes(64))
        found = outcome(longer, oracle, write=False)
        assert found or kind == ".wal", path  # zeros behind a log are room


def test_a_missing_file_refuses_to_open(whole):
    disk, _ = whole
    last = max(name for name in disk.names if name.endswith(".wal"))
    spares = {name for name in disk.names if name.endswith(".spare")}
    for path in sorted(set(disk.names) - spares - {last}):  # it is as after a crash at its start
        lost = disk.after_crash(random.Random(0), "all")
        lost.remove(path)
        for read_only in (True, False):
            with pytest.raises((errors.SeqVaultError, FileNotFoundError)) as raised:
                SeqVault.open(PATH, files=lost, read_only=read_only)
            assert PATH in str(raised.value), path


def test_strange_files_are_removed_by_the_writer_and_ignored_by_readers(whole):
    disk, oracle = whole
    segment = next(name for name in disk.names if name.endswith(".seg"))
    strays = [
        f"{PATH}/segments/0000009999.seg",
        f"{PATH}/segments/0000009998.seg.tmp",
        f"{PATH}/items/0000009999.items",
        f"{PATH}/items/0000009998.items.tmp",
        f"{PATH}/wal/0000009998.wal.tmp",
        f"{PATH}/MANIFEST.tmp",
    ]
    for stray in strays:
        disk.replace(stray, disk.content(segment).tobytes())
    disk.replace(f"{PATH}/segments/README", b"of a person, who may want it back")
    assert not outcome(disk, oracle, write=False)
    assert not outcome(disk, oracle, write=True)
    assert not {stray for stray in strays if "999" in stray} & set(disk.names)
    assert f"{PATH}/segments/README" in disk.names


def test_a_stale_file_in_the_place_of_another_is_noticed(whole):
    disk, oracle = whole
    for kind in (".seg", ".wal"):
        one, other = sorted(name for name in disk.names if name.endswith(kind))[:2]
        swapped = disk.after_crash(random.Random(0), "all")
        swapped.replace(one, disk.content(other).tobytes())
        assert outcome(swapped, oracle, write=True) == "DamagedFileError", kind


def test_a_stale_manifest_does_not_open_on_newer_files(whole):
    """A manifest from before merges names log files that are gone."""
    early = MemoryFiles()
    vault = SeqVault.open(PATH, schema=SCHEMA, files=early)
    vault.append(random_events(random.Random(5), 50))
    stale = early.content(f"{PATH}/MANIFEST").tobytes()
    vault.merge()
    vault.append(random_events(random.Random(6), 50))
    disk = early.after_crash(random.Random(0), "all")
    disk.replace(f"{PATH}/MANIFEST", stale)
    with pytest.raises((errors.DamagedFileError, FileNotFoundError)):
        SeqVault.open(PATH, files=disk)


def test_stale_log_files_below_the_first_are_not_read_again():
    disk, oracle, rng = MemoryFiles(), Oracle(), random.Random(4)
    with SeqVault.open(PATH, schema=SCHEMA, files=disk) as vault:
        events = random_events(rng, 50)
        vault.append(events)
        oracle.add(events)
        old = next(name for name in disk.names if name.endswith(".wal"))
        content = disk.content(old).tobytes()
        vault.merge()
    disk.replace(old, content)  # a removal that a crash undid
    assert not outcome(disk, oracle, write=False)
    assert not outcome(disk, oracle, write=True)


def test_a_flipped_bit_in_an_acknowledged_frame_before_others_refuses_to_open():
    disk = MemoryFiles()
    vault = SeqVault.open(PATH, schema=SCHEMA, files=disk)
    for i in range(4):
        vault.append(random_events(random.Random(i), 3))
    path = next(name for name in disk.names if name.endswith(".wal"))
    crashed = disk.after_crash(random.Random(0), "all")
    crashed.flip_bit(path, 8 * (wal.FIRST + 60))
    with pytest.raises(errors.DamagedFileError, match="acknowledged"):
        SeqVault.open(PATH, files=crashed)


@pytest.mark.parametrize("place", ["manifest", "segment"])
def test_a_newer_format_is_refused_and_left_alone(whole, place):
    disk, _ = whole
    path = f"{PATH}/MANIFEST"
    content = disk.content(path).tobytes()
    if place == "manifest":
        line, _, body = content.partition(b"\n")
        words = line.split(b" ")
        newer = b" ".join([words[0], b"99", *words[2:]]) + b"\n" + body
    else:
        path = next(name for name in disk.names if name.endswith(".seg"))
        content = disk.content(path).tobytes()
        newer = content[:8] + struct.pack("<I", 99) + content[12:]
    disk.replace(path, newer)
    before = {name: disk.content(name).tobytes() for name in disk.names}
    for read_only in (True, False):
        with pytest.raises(errors.NewerFormatError, match=r"99.*Install a newer"):
            SeqVault.open(PATH, files=disk, read_only=read_only)
    assert {name: disk.content(name).tobytes() for name in disk.names} == before
