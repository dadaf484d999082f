"""Damaged, missing, stale and strange files: the right answer or a typed error."""

import json
import random
import struct
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seqvault import SeqVault, errors
from seqvault.codec.primitives import checksum
from seqvault.disk import item_file as items
from seqvault.disk import wal
from seqvault.disk.item_file import MAGIC
from seqvault.testing.crash_run import PATH
from seqvault.testing.file_regions import regions_of
from seqvault.testing.memory_files import MemoryFiles
from seqvault.testing.oracle import Oracle
from seqvault.testing.random_workload import SCHEMA, random_events

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
                 "wal header", "wal frame head", "wal frame body", "wal seal",
                 "wal next"):  # fmt: skip
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
    spares = {name for name in disk.names if name.endswith(".spare")}
    for path in sorted(set(disk.names) - spares):
        lost = disk.after_crash(random.Random(0), "all")
        lost.remove(path)
        for read_only in (True, False):
            with pytest.raises((errors.SeqVaultError, FileNotFoundError)) as raised:
                SeqVault.open(PATH, files=lost, read_only=read_only)
            assert PATH in str(raised.value), path


def opens(disk: MemoryFiles) -> bool:
    """Whether the store opens, for readers and for a writer alike."""
    answers = []
    for read_only in (True, False):
        try:
            files = disk.after_crash(random.Random(0), "all")
            SeqVault.open(PATH, files=files, read_only=read_only)
            answers.append(True)
        except errors.DamagedFileError as error:
            assert "wal" in str(error) and "missing" in str(error), error
            answers.append(False)
    assert answers[0] == answers[1]
    return answers[0]


def logs_of(disk: MemoryFiles) -> list[str]:
    return sorted(name for name in disk.names if name.endswith(".wal"))


def test_the_loss_of_the_last_log_file_is_noticed_at_every_age_of_a_store(monkeypatch):
    """A new store, one that was closed, a merged one, one whose log has grown, a copy."""
    monkeypatch.setattr(wal, "FILE_SIZE", 1 << 12)
    disk, rng = MemoryFiles(), random.Random(3)

    def check() -> None:
        assert opens(disk)
        lost = disk.after_crash(rng, "all")
        lost.remove(logs_of(disk)[-1])
        assert not opens(lost)

    for life in range(3):
        vault = SeqVault.open(PATH, schema=SCHEMA, files=disk)
        check()
        for _ in range(7):
            vault.append(random_events(rng, 60))
            check()
        if life != 1:
            vault.merge()
            check()
        if life == 0:
            vault.snapshot("/copy/vault")
        vault.close()
        check()
    copy = SeqVault.open("/copy/vault", files=disk)  # a copy has no log to miss
    copy.append(random_events(rng, 5))
    lost = disk.after_crash(rng, "all")
    lost.remove(max(name for name in logs_of(disk) if name.startswith("/copy")))
    with pytest.raises(errors.DamagedFileError, match="missing"):
        SeqVault.open("/copy/vault", files=lost)


def test_verify_notices_a_log_file_that_is_lost_under_an_open_store(whole):
    disk, _ = whole
    vault = SeqVault.open(PATH, files=disk, read_only=True)
    vault.verify()
    disk.remove(logs_of(disk)[-1])
    with pytest.raises(errors.DamagedFileError, match=r"wal.*is missing"):
        vault.verify()


def with_frame(disk: MemoryFiles, **changes: Any) -> tuple[MemoryFiles, int]:
    """The first frame of the first log file changed, its checksums right; and where it is."""
    path = logs_of(disk)[0]
    data = bytearray(disk.content(path).tobytes())
    at, size = wal.FIRST, wal.FRAME.itemsize
    head = np.frombuffer(data, wal.FRAME, 1, at).copy()
    body = data[at + size : at + size + -(-int(head["length"][0]) // 8) * 8]
    body[: len(changes.get("body", b""))] = changes.pop("body", b"")
    for name, value in changes.items():
        head[name] = value
    length = -(-int(head["length"][0]) // 8) * 8
    head["body_check"] = checksum(bytes(body[:length]))
    head["check"] = checksum(head.tobytes()[8:])
    data[at : at + size] = head.tobytes()
    data[at + size : at + size + len(body)] = body
    changed = disk.after_crash(random.Random(0), "all")
    changed.replace(path, bytes(data))
    return changed, at


@pytest.mark.parametrize(
    "changes, says",
    [({"count": 4}, "4 events take"), ({"count": 1 << 31}, "events take"), ({"kind": 9}, "no kind"),
     ({"schema": 7}, "schema 7"), ({"source": 1 << 30}, "longer than"),
     ({"body": b"\xff\xfe"}, "not UTF-8"), ({"source": 0}, "bytes of events")],
)  # fmt: skip
def test_a_frame_with_a_right_checksum_and_wrong_content(whole, changes, says):
    disk, at = with_frame(whole[0], **changes)
    for read_only in (True, False):
        with pytest.raises(errors.DamagedFileError, match=rf"wal.* at byte {at}: .*{says}"):
            SeqVault.open(PATH, files=disk, read_only=read_only)


@pytest.mark.parametrize(
    "change, says",
    [(lambda m: m.update(segments=[1, 1]), "segments"), (lambda m: m.pop("schemas"), "schemas"),
     (lambda m: m.update(segments="1"), "segments"), (lambda m: m.update(next_file=1), "next_file"),
     (lambda m: m.update(segments=[-1]), "segments"),
     (lambda m: m.update(wal_start=0), "wal_start"),
     (lambda m: m.update(wal_start="1"), "wal_start"), (lambda m: m.update(sources=[]), "sources"),
     (lambda m: m.update(sources={"a": "b"}), "sources"), (lambda m: m.update(novel=1), "novel"),
     (lambda m: m.update(covers={"77": 1}), "covers"), (lambda m: m.update(schemas=[]), "schemas"),
     (lambda m: m.update(edition=None), "edition"), (lambda m: m.update(items=[1.5]), "items"),
     (lambda m: m["schemas"][0][0].update(dtype="text"), "schemas"),
     (lambda m: m["schemas"][0][0].update(surprise=1), "schemas"),
     (lambda m: m.update(max_events=True), "max_events"),
     (lambda m: m.update(next_file=1 << 40), "next_file")],
)  # fmt: skip
def test_a_manifest_with_a_right_checksum_and_wrong_content(whole, change, says):
    disk, _ = whole
    path = f"{PATH}/MANIFEST"
    line, _, body = disk.content(path).tobytes().partition(b"\n")
    told = json.loads(body)
    change(told)
    fresh = json.dumps(told).encode()
    for body, word in ((fresh, says), (fresh[:-1], r"no JSON at byte \d+"), (b"[3]", "byte")):
        head = b" ".join([*line.split(b" ")[:2], b"%d %d" % (len(body), checksum(body))])
        disk.replace(path, head + b"\n" + body)
        for read_only in (True, False):
            with pytest.raises(errors.DamagedFileError, match=rf"MANIFEST is damaged.*{word}"):
                SeqVault.open(PATH, files=disk, read_only=read_only)


def test_a_manifest_that_asks_for_more_log_files_than_memory_could_list(whole):
    disk, _ = whole
    path = f"{PATH}/MANIFEST"
    told = json.loads(disk.content(path).tobytes().partition(b"\n")[2])
    body = json.dumps({**told, "wal_last": 1 << 60}).encode()
    disk.replace(path, b"seqvault 3 %d %d\n" % (len(body), checksum(body)) + body)
    for read_only in (True, False):
        with pytest.raises(errors.DamagedFileError, match=f"log files are missing.*{1 << 60}"):
            SeqVault.open(PATH, files=disk, read_only=read_only)


def test_item_files_of_different_columns_are_refused(whole):
    disk, _ = whole
    with SeqVault.open(PATH, files=disk) as vault:
        version = vault.put_items({"item_id": [2], "value": [30]})
    path = f"{PATH}/items/{version:010d}.items"
    other = pa.table({"item_id": [1], "surprise": [2.5]})
    items.save(disk, PATH, version, other)
    with pytest.raises(errors.DamagedFileError, match=rf"{path} has the columns.*surprise: double"):
        SeqVault.open(PATH, files=disk, read_only=True)


def test_an_item_file_with_a_right_checksum_and_wrong_content(whole):
    disk, _ = whole
    path = next(name for name in disk.names if name.endswith(".items"))
    other = pa.BufferOutputStream()
    table = pa.table({"thing": [1]})
    with pa.ipc.new_stream(other, table.schema) as writer:
        writer.write_table(table)
    for body in (b"no Arrow at all", other.getvalue().to_pybytes(), b""):
        head = MAGIC + len(body).to_bytes(8, "little") + checksum(body).to_bytes(8, "little")
        disk.replace(path, head + body)
        with pytest.raises(errors.DamagedFileError, match="items is damaged"):
            SeqVault.open(PATH, files=disk, read_only=True)


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
