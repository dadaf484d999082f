"""Fuzzed decoder input: real files with bytes changed and every checksum made right again.

A checksum keeps damage from the decoder; here nothing does. The decoder must refuse, or
answer something of the right shape, and never touch memory that is not its own. All runs
in a child process, so that a crash of the decoder is a failed test.
"""

import multiprocessing
import random
import struct
import tempfile
import traceback
from collections.abc import Callable

import numpy as np
import pytest

from seqvault import SeqVault, errors
from seqvault.codec import chunks
from seqvault.codec.primitives import checksum
from seqvault.disk import wal
from seqvault.testing.crash_run import PATH, small_log_files
from seqvault.testing.file_regions import Region, regions_of
from seqvault.testing.memory_files import MemoryFiles
from seqvault.testing.random_workload import NOW, SCHEMA, random_events

REFUSED = (errors.SeqVaultError, FileNotFoundError)  # a file that the manifest names wrongly


def in_a_child(work: Callable[[], None]) -> None:
    """Runs ``work`` in a process of its own; its failure, or its crash, is ours."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def run() -> None:
        try:
            work()
            queue.put("")
        except BaseException:
            queue.put(traceback.format_exc())

    process = context.Process(target=run)
    process.start()
    process.join(timeout=200)
    assert process.exitcode == 0, f"the process ended with {process.exitcode}"
    failure = queue.get(timeout=10)
    assert not failure, failure


def filled() -> MemoryFiles:
    """A store with a segment of several blocks a user, and a log."""
    disk, rng = MemoryFiles(), random.Random(1)
    with small_log_files():
        vault = SeqVault.open(PATH, schema=SCHEMA, files=disk)
        for offset, count in enumerate((2500, 40, 10)):
            vault.append(random_events(rng, count), source="log-0", offset=offset)
            if count == 2500:
                vault.merge()
    return disk


def changed(rng: random.Random, data: bytearray, start: int, stop: int) -> None:
    """A few bytes anywhere within, or a run of them, become others."""
    if rng.random() < 0.8:
        for _ in range(rng.choice((1, 1, 2, 5))):
            data[rng.randrange(start, stop)] = rng.choice((0, 1, 255, 128, rng.randrange(256)))
    else:
        first = rng.randrange(start, stop)
        last = min(stop, first + rng.randrange(1, 40))
        data[first:last] = rng.choice((bytes, rng.randbytes))(last - first)


def ask(disk: MemoryFiles, rng: random.Random) -> str:
    """Reads real files in every way; the error's name if it was refused."""
    with tempfile.TemporaryDirectory() as folder, small_log_files():
        disk.write_to(folder, PATH)
        try:
            with SeqVault.open(folder, read_only=rng.random() < 0.5) as vault:
                for arguments in (
                    {"before": None, "last_n": 4096},
                    {"before": NOW + rng.randrange(-6000, 2000), "last_n": rng.choice((1, 300))},
                    {"before": None, "last_n": 100, "actions": [1, 2]},
                    {"before": None, "last_n": 10, "fields": ["action"]},
                ):
                    for users in (range(6), [rng.randrange(6)]):
                        batch = vault.read(users, **arguments)
                        assert batch["action"].shape == (len(users), arguments["last_n"])
                        assert (batch.lengths >= 0).all()
                        assert (batch.lengths <= arguments["last_n"]).all()
                vault.verify()
            return ""
        except REFUSED as error:
            return type(error).__name__


def mend_segment(data: bytearray, region: Region, record: int, blocks: int) -> None:
    """Makes the checksums right that cover ``region``."""
    directory = record + 12 + 12 * blocks
    if region.name == "segment block chunks":
        struct.pack_into("<I", data, region.start - 4, checksum(data[region.start : region.stop]))
    elif region.name in ("segment record head", "segment directory"):
        (count,) = struct.unpack_from("<I", data, record + 8)
        now = record + 12 + 12 * -(-count // 256)
        end = now if now + 4 <= len(data) else directory
        struct.pack_into("<I", data, end, checksum(data[record:end]))
    else:
        at = len(data) - 40
        footer, length = struct.unpack_from("<QQ", data, at)
        if footer + length <= at:
            struct.pack_into("<I", data, at + 24, checksum(data[footer : footer + length]))
        struct.pack_into("<I", data, at + 28, checksum(data[at : at + 28]))


@pytest.mark.parametrize(
    "kind",
    ["segment block chunks", "segment record head", "segment directory", "segment footer",
     "segment trailer"],
)  # fmt: skip
def test_mutated_records_with_right_checksums(kind):
    disk = filled()
    path = next(name for name in disk.names if name.endswith(".seg"))
    content = disk.content(path).tobytes()
    regions = regions_of(path, content)

    def work() -> None:
        outcomes = set()
        for seed in range(250):
            rng = random.Random(f"{kind}-{seed}")
            data = bytearray(content)
            region = rng.choice([region for region in regions if region.name == kind])
            heads = [r.start for r in regions if r.name == "segment record head"]
            record = max((start for start in heads if start <= region.start), default=heads[0])
            (count,) = struct.unpack_from("<I", content, record + 8)
            stop = region.stop - (28 - 16) if kind == "segment trailer" else region.stop
            changed(rng, data, region.start, stop)
            mend_segment(data, region, record, -(-count // 256))
            damaged = disk.after_crash(rng, "all")
            damaged.replace(path, bytes(data))
            outcomes.add(ask(damaged, rng))
        assert "DamagedFileError" in outcomes, outcomes

    in_a_child(work)


def test_random_bytes_as_any_file_are_refused():
    disk = filled()

    def work() -> None:
        for seed in range(200):
            rng = random.Random(f"bytes-{seed}")
            path = rng.choice(sorted(n for n in disk.names if not n.endswith(".wal")))
            damaged = disk.after_crash(rng, "all")
            keep = rng.choice((0, 8, 32))
            start = disk.content(path).tobytes()[:keep]
            damaged.replace(path, start + rng.randbytes(rng.choice((0, 1, 31, 72, 500, 5000))))
            assert ask(damaged, rng) in ("DamagedFileError", "NewerFormatError"), (path, seed)

    in_a_child(work)


def test_mutated_chunks_never_write_beside_their_values():
    def work() -> None:
        for seed in range(3000):
            rng = random.Random(seed)
            n = rng.choice((1, 5, 127, 128, 200, 256))
            top = rng.choice((1, 40, 2**20, 2**40, 2**62))
            values = np.array([rng.randrange(-top, top) for _ in range(n)], np.int64)
            out = np.zeros(chunks.PADDING + chunks.chunk_bound(n), np.uint8)
            end = int(chunks.pack_chunk(values, n, out, 0))
            data = bytearray(out.tobytes())
            changed(rng, data, 0, end)
            padded = np.frombuffer(bytes(data), np.uint8).copy()
            dtype = np.dtype(rng.choice(("u1", "u2", "u4", "u8")))
            low, high = sorted((rng.randrange(n), rng.randrange(n)))
            guard = np.full(high - low + 1 + 1024, 77, dtype)
            status = chunks.put_chunk(
                padded.ctypes.data, 0, rng.choice((end, rng.randrange(end + 1))), n, low, high,
                guard.ctypes.data, 512 * dtype.itemsize, dtype.itemsize,
            )  # fmt: skip
            assert status in (chunks.OK, chunks.BAD_CHUNK)
            assert (guard[:512] == 77).all() and (guard[512 + high - low + 1 :] == 77).all()

    in_a_child(work)


def test_log_scan_of_random_bytes_is_refused_or_empty():
    rng = random.Random(0)
    head = wal._file_header(3, life=77)
    for _ in range(300):
        data = np.frombuffer(head + rng.randbytes(rng.randrange(400)), np.uint8)
        assert list(wal.scan(data, 3, "a log file", sealed=False)) == []
        with pytest.raises(errors.DamagedFileError):
            list(wal.scan(data, 3, "a log file", sealed=True))
