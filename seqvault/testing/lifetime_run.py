"""Ends stores at random moments of everything that they do, and checks what is left.

Threads append, bulk load, merge, write items, take snapshots and read, with a second
object that refreshes beside them, while the store is closed and opened again, forked, tried
by a second opener, ended by SIGTERM or killed. Every other store is shared, and read by one
that attached to it, too. After each end every acknowledged event must be there, once, in
order; nothing else may be; and every file must be sound.

Run ``python -m seqvault.testing.lifetime_run --seconds 60``. A failure prints its seed.
"""

import argparse
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from seqvault import store as store_module
from seqvault.end_signals import EndSignals
from seqvault.errors import (
    ForkedStoreError,
    SeqVaultError,
    StoreClosedError,
    StoreLockedError,
)
from seqvault.store import SeqVault
from seqvault.testing.crash_run import small_log_files
from seqvault.testing.life import LAST_N, USERS, Expected, Life
from seqvault.testing.random_workload import SCHEMA
from seqvault.warm_up import warm_up

ACK = struct.Struct("<iq")  # user, or -1 for items; how many


def refused_in_a_child(life: Life) -> str:
    """What a forked child could do with the store that it must not, "" if nothing."""
    child = os.fork()
    if child == 0:
        done = 1
        signal.alarm(20)  # a call that waits for a thread that the child lacks
        try:
            calls: list[Callable[[], Any]] = [
                lambda: life.vault.append({name: [] for name in ("user_id", *SCHEMA.columns)}),
                lambda: life.vault.read([0], before=None, last_n=1),
                lambda: life.vault.merge(),
            ]
            refused = 0
            for call in calls:
                try:
                    call()
                except (ForkedStoreError, StoreClosedError):
                    refused += 1
            life.vault.close()
            done = 0 if refused == len(calls) else 1
        finally:
            os._exit(done)
    _, status = os.waitpid(child, 0)
    return f"a forked child was not refused, status {status}" if status else ""


def thread_run(path: str, expected: Expected, seed: str, seconds: float, share: bool) -> None:
    """Closes, reopens and forks one process's store for some time.

    Raises:
        AssertionError: something acknowledged is lost, or something else is there.
    """
    rng, life = random.Random(f"{seed}-fate"), None
    usual = store_module.CLOSE_SECONDS
    try:
        life = Life(path, expected, seed, lambda user, many: None, share)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not life.faults:
            time.sleep(rng.random() * 0.15)
            fate = rng.random()
            if fate < 0.6:
                life.reopen(rng.choice((0.0, 0.01, 10.0)))
            elif fate < 0.8:
                wrong = refused_in_a_child(life)
                assert not wrong, wrong
            else:
                second_opener(path, share)
    finally:
        if life is not None:
            life.stop()
        store_module.CLOSE_SECONDS = usual
    assert not life.faults, life.faults
    check(path, expected)


def second_opener(path: str, share: bool) -> None:
    """Tries to open a store that is open for writing."""
    try:
        SeqVault.open(path, share=share).close()
    except StoreLockedError:
        return
    raise AssertionError("a second opener got the lock")


def check(path: str, expected: Expected) -> None:
    """Checks a store that is not open."""
    for read_only in (True, False):
        with SeqVault.open(path, read_only=read_only) as vault:
            vault.verify()
            wrong = expected.fault_in(vault, expected.acknowledged)
            assert not wrong, f"after the end: {wrong}"


def process_run(path: str, expected: Expected, seed: str, seconds: float, share: bool) -> None:
    """Ends a process that works on the store, by SIGTERM or SIGKILL, and checks the store.

    Raises:
        AssertionError: see ``thread_run``; or the process failed.
    """
    rng = random.Random(f"{seed}-process")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os._exit(_work(path, expected, seed, writer, share))
    os.close(writer)
    ending = threading.Timer(
        seconds, os.kill, (child, rng.choice((signal.SIGTERM, signal.SIGKILL)))
    )
    ending.start()
    told = b""
    while piece := os.read(reader, 1 << 16):
        told += piece
    os.close(reader)
    ending.join()
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the process ended with status {status}"
    for user, many in ACK.iter_unpack(told[: len(told) // ACK.size * ACK.size]):
        expected.acknowledged[user] = max(expected.acknowledged[user], many)
        expected.issued[user] = max(expected.issued[user], many)
    for user in USERS:  # what was under way may be there, too
        expected.issued[user] = expected.acknowledged[user] + 1000
    expected.issued[-1] += 1
    check(path, expected)
    # what turned out to be there stays there
    with SeqVault.open(path, read_only=True) as vault:
        lengths = vault.read(USERS, before=None, last_n=LAST_N).lengths.tolist()
        for user, many in zip(USERS, lengths, strict=True):
            expected.acknowledged[user] = expected.issued[user] = many


def _work(path: str, expected: Expected, seed: str, writer: int, share: bool) -> int:
    """A process's whole life; returns its exit status."""
    ended = EndSignals()
    try:
        life = Life(
            path, expected, seed, lambda user, many: os.write(writer, ACK.pack(user, many)), share
        )
        while not ended.wait(0.02) and not life.faults:
            pass
        life.stop()
        if life.faults:
            print(life.faults, file=sys.stderr, flush=True)
        return 3 if life.faults else 0
    except SeqVaultError as error:
        print(repr(error), file=sys.stderr, flush=True)
        return 4


def lifetime_run(seconds: float, seed: int) -> int:
    """Runs the process and the thread test alternately for about ``seconds``.

    Returns:
        How many stores were ended.
    """
    warm_up()
    lives, end = 0, time.monotonic() + seconds
    with small_log_files(), tempfile.TemporaryDirectory(prefix="seqvault-lives-") as root:
        while time.monotonic() < end or not lives:
            path, expected = f"{root}/{lives}", Expected()
            SeqVault.open(path, schema=SCHEMA).close()
            for run in (process_run, process_run, thread_run):
                length = random.Random(f"{seed}-{lives}").random() * 0.6 + 0.1
                share = bool(lives % 2)
                try:
                    run(
                        path,
                        expected,
                        f"{seed}-{lives}",
                        length * (1 + 2 * (run is thread_run)),
                        share,
                    )
                except BaseException:
                    print(f"failed: seed {seed}, life {lives}, {run.__name__}", flush=True)
                    raise
                lives += 1
            for name in os.listdir(root):
                shutil.rmtree(f"{root}/{name}")
    return lives


def main(argv: list[str] | None = None) -> int:
    """Command line of the lifetime run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    lives = lifetime_run(arguments.seconds, arguments.seed)
    print(f"{lives} stores ended, seed {arguments.seed}: nothing acknowledged was lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
