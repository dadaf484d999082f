"""``kill -9`` of a real process that writes to a real disk, and what is there afterwards.

The process kills itself before or after its n-th write, sync, rename or unlink, or is killed from
outside at a random moment. What the kernel has taken survives, so this tests the
process and the real file layer; lost writes are the part of ``crash_run``.
"""

import os
import random
import shutil
import signal
import tempfile
import time

from seqvault.disk.files import Files
from seqvault.store import SeqVault
from seqvault.testing.oracle import Oracle
from seqvault.testing.random_workload import SCHEMA, random_step
from seqvault.warm_up import warm_up

KILLS_PER_STORE = 12
WRITES = (
    "create", "pwrite", "allocate", "truncate", "fdatasync", "rename", "unlink", "link",
    "sync_directory",
)  # fmt: skip


class KillFiles(Files):
    """The real file layer of a process that kills itself at an operation.

    Args:
        point: counts down with every operation that changes the disk; 0: never.
        behind: whether the last operation still takes place.
    """

    def __init__(self, point: int, behind: bool) -> None:
        self._left = point
        for name in WRITES:
            setattr(self, name, self._wrapped(getattr(self, name), behind))

    def _wrapped(self, call, behind):  # type: ignore[no-untyped-def]
        def wrapped(*arguments):  # type: ignore[no-untyped-def]
            self._left -= 1
            if self._left == 0 and not behind:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments)
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped


def _work(path: str, oracle: Oracle, rng: random.Random, files: Files, acknowledge: int) -> None:
    """Works until killed; a byte for the open and for every call that returned."""
    vault = SeqVault.open(path, schema=SCHEMA, files=files)
    os.write(acknowledge, b".")
    while True:
        oracle, call = random_step(oracle, rng, f"{path}-copies")
        call(vault)
        os.write(acknowledge, b".")


def kill_once(path: str, oracle: Oracle, seed: str) -> Oracle:
    """Starts a process that works on the store, kills it, and checks what is there.

    Returns:
        What the store holds now.

    Raises:
        AssertionError: something acknowledged is lost, or something else is there.
    """
    chance = random.Random(seed)
    by_itself, point, behind = chance.random() < 0.6, chance.randint(1, 60), chance.random() < 0.5
    seconds = chance.random() * 0.05
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            files = KillFiles(point if by_itself else 0, behind)
            _work(path, oracle, random.Random(f"{seed}-steps"), files, writer)
        finally:
            os._exit(status)
    os.close(writer)
    if not by_itself:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    acknowledged = b""
    while piece := os.read(reader, 1 << 16):
        acknowledged += piece
    os.close(reader)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the process ended by itself, status {status}"
    possible = _possible(oracle, random.Random(f"{seed}-steps"), len(acknowledged), path)
    if not os.path.exists(f"{path}/MANIFEST"):
        assert not acknowledged and not oracle.events, "the manifest is lost"
        return oracle
    with SeqVault.open(path, read_only=True) as vault:
        seen = [one.difference(vault) for one in possible]
        assert "" in seen, f"read-only: neither before nor after the last call: {seen}"
    with SeqVault.open(path) as vault:
        vault.verify()
        answers = [one.difference(vault) for one in possible]
        assert "" in answers, f"neither before nor after the last call: {answers}"
        kept = possible[answers.index("")].copy()
        kept.offset = vault.stats()["sources"].get("log-0", -1)
        assert kept.offset >= possible[0].offset, "a source's offset went back"
    return kept


def _possible(oracle: Oracle, rng: random.Random, bytes_seen: int, path: str) -> list[Oracle]:
    """The store before the call that was under way, and after it."""
    for _ in range(bytes_seen - 1):
        oracle, _ = random_step(oracle, rng, f"{path}-copies")
    if not bytes_seen:
        return [oracle]
    return [oracle, random_step(oracle, rng, f"{path}-copies")[0]]


def kill_run(kills: int, seed: int) -> int:
    """Kills ``kills`` processes; a new store after every 12.

    Returns:
        How many were killed.
    """
    warm_up()  # once, not in every process
    with tempfile.TemporaryDirectory(prefix="seqvault-kills-") as root:
        oracle = Oracle()
        for k in range(kills):
            path = f"{root}/{k // KILLS_PER_STORE}"
            if k % KILLS_PER_STORE == 0:
                shutil.rmtree(root)
                os.mkdir(root)
                oracle = Oracle()
            try:
                oracle = kill_once(path, oracle, f"{seed}-{k}")
            except BaseException:
                print(f"failed: seed {seed}, kill {k} of the store begun at kill "
                      f"{k - k % KILLS_PER_STORE}")  # fmt: skip
                raise
    return kills
