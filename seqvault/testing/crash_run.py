"""Crashes a store at random points and checks what it promises, against an oracle.

Run ``python -m seqvault.testing.crash_run --points 1000 --kills 1000``. A point is the end
of a simulated machine, which loses what was not synced; a kill is ``kill -9`` of a real
process. A failure prints the seed that repeats it.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from seqvault.disk import wal
from seqvault.errors import SeqVaultError
from seqvault.store import SeqVault
from seqvault.testing.kill_run import kill_run
from seqvault.testing.memory_files import Crash, MemoryFiles
from seqvault.testing.oracle import Oracle
from seqvault.testing.random_workload import SCHEMA, random_step

PATH = "/vault"
COPIES = "/copies"
CRASHES_PER_STORE = 12
LOG_BYTES = 1 << 14  # small, so that log files change often


@contextmanager
def small_log_files(size: int = LOG_BYTES) -> Iterator[None]:
    """Log files of ``size`` bytes within the block."""
    usual, wal.FILE_SIZE = wal.FILE_SIZE, size
    try:
        yield
    finally:
        wal.FILE_SIZE = usual


def crash_once(disk: MemoryFiles, oracle: Oracle, rng: random.Random) -> tuple[MemoryFiles, Oracle]:
    """Opens the store, works until it crashes, and returns what is left of both.

    Raises:
        AssertionError: something acknowledged is lost, or something else is there.
    """
    possible = [oracle]
    left = rng.randint(1, 60)

    def fault(operation: str) -> None:
        nonlocal left
        if operation != "preadv":
            left -= 1
            if left <= 0:
                raise Crash

    disk.fault = fault
    try:
        vault = SeqVault.open(PATH, schema=SCHEMA, files=disk)
        wrong = oracle.difference(vault)
        assert not wrong, wrong
        while True:
            after, call = random_step(oracle, rng, COPIES)
            possible = [oracle, after]
            call(vault)
            oracle = after
            possible = [oracle]
    except (Crash, SeqVaultError):
        if left > 0:
            raise
    disk.fault = lambda operation: None
    crashed = disk.after_crash(rng)
    return check_after_crash(crashed, possible, rng)


def check_after_crash(
    crashed: MemoryFiles, possible: list[Oracle], rng: random.Random
) -> tuple[MemoryFiles, Oracle]:
    """Checks that the store is what one of the oracles says, and stays it.

    Args:
        crashed: the disk after the crash.
        possible: the store before the call under way, and after it.
        rng: chooses how a second crash, during recovery's aftermath, ends.

    Returns:
        The disk after that second crash, and the oracle that is right.
    """
    oracle = possible[0]
    if f"{PATH}/MANIFEST" not in crashed.names:
        assert not oracle.events and not oracle.items, "the manifest is lost"
        return crashed, oracle
    # open, look, and crash again without having written: what was read must stay
    probe = crashed.after_crash(rng)
    vault = SeqVault.open(PATH, files=probe)
    vault.verify()
    answers = [candidate.difference(vault) for candidate in possible]
    assert "" in answers, f"neither before nor after the last call: {answers}"
    kept = possible[answers.index("")].copy()
    kept.offset = vault.stats()["sources"].get("log-0", -1)
    assert kept.offset >= oracle.offset, "a source's offset went back"
    for name in crashed.names:  # a snapshot that has a manifest is whole
        if name.startswith(COPIES) and name.endswith("/MANIFEST"):
            with SeqVault.open(name[: -len("/MANIFEST")], read_only=True, files=crashed) as copy:
                copy.verify()
    return probe.after_crash(rng), kept


def crash_run(points: int, seed: int, progress: bool = False) -> int:
    """Crashes at ``points`` points; a new store after every 12 crashes."""
    done = 0
    with small_log_files():
        while done < points:
            rng = random.Random(f"{seed}-{done}")
            short = random.Random(done) if rng.random() < 0.5 else None
            disk, oracle = MemoryFiles(short=short), Oracle()
            for k in range(min(CRASHES_PER_STORE, points - done)):
                try:
                    disk, oracle = crash_once(disk, oracle, rng)
                except BaseException:
                    print(f"failed: seed {seed}, store begun at point {done}, crash {k}")
                    raise
            done += CRASHES_PER_STORE
            if progress and sys.stderr.isatty():
                print(f"\r{min(done, points)} of {points} crashes", end="", file=sys.stderr)
    return points


def main(argv: list[str] | None = None) -> int:
    """Command line of the crash run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1000, help="simulated crashes")
    parser.add_argument("--kills", type=int, default=1000, help="processes killed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    crash_run(arguments.points, arguments.seed, progress=True)
    with small_log_files():
        killed = kill_run(arguments.kills, arguments.seed)
    print(
        f"{arguments.points} crashes of a disk and {killed} processes killed, seed "
        f"{arguments.seed}: nothing acknowledged was lost, no wrong read"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
