"""Concurrent load on a store and the expected contents, for ``lifetime_run``."""

import random
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from seqvault import store as store_module
from seqvault.disk.files import Files
from seqvault.errors import (
    LimitError,
    NotSharedError,
    StoreClosedError,
    StoreFailedError,
    WriterGoneError,
)
from seqvault.store import SeqVault
from seqvault.testing.random_workload import NOW, SCHEMA

APPENDERS, LOADER = (0, 1), 2  # users; each has one thread that stores its events
USERS = (*APPENDERS, LOADER)
ITEMS = np.arange(5)
LAST_N = 1 << 16


class SlowFiles(Files):
    """The real file layer with random delays between operations."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def _pause(self) -> None:
        if self._rng.random() < 0.3:
            time.sleep(self._rng.random() * 0.01)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:  # noqa: D102
        self._pause()
        return super().pwrite(fd, data, offset)

    def rename(self, old: str, new: str) -> None:  # noqa: D102
        self._pause()
        super().rename(old, new)

    def unlink(self, path: str) -> None:  # noqa: D102
        self._pause()
        super().unlink(path)

    def link(self, old: str, new: str) -> None:  # noqa: D102
        self._pause()
        super().link(old, new)


class Expected:
    """What the store must hold: of each user, events 0, 1, 2... in this order.

    Attributes:
        acknowledged: events of each user that must be there; of "items", the value at least.
        issued: those that may be there.
    """

    def __init__(self) -> None:
        self.acknowledged: dict[int, int] = dict.fromkeys((*USERS, -1), 0)
        self.issued: dict[int, int] = dict.fromkeys((*USERS, -1), 0)

    def fault_in(self, vault: SeqVault, least: dict[int, int]) -> str:
        """What is wrong with the answers of a store, "" if nothing.

        Args:
            vault: the store.
            least: what had been acknowledged before it was opened, or refreshed.
        """
        batch = vault.read(USERS, before=None, last_n=LAST_N, fields=["item_id"])
        for row, user in enumerate(USERS):
            many = int(batch.lengths[row])
            if not least[user] <= many <= self.issued[user]:
                return (
                    f"user {user}: {many} events, {least[user]} were acknowledged and "
                    f"{self.issued[user]} issued"
                )
            if (batch["item_id"][row, :many][::-1] != np.arange(many)).any():
                return f"user {user}: events are missing, there twice or out of order"
        if not least[-1]:
            return ""
        values = vault.read_items(ITEMS)["value"]
        if (values != values[0]).any() or not least[-1] <= values[0] <= self.issued[-1]:
            return f"items: {values.tolist()}, {least[-1]} was acknowledged"
        return ""


class Life:
    """A store at work in threads of this process.

    Args:
        path: the store's directory; there must be one.
        expected: of the store; changed as calls are made and return.
        seed: of the random choices.
        tell: called with a user (-1: items) and how many are acknowledged.
        share: let others attach, and read as one of them, too.
    """

    def __init__(
        self,
        path: str,
        expected: Expected,
        seed: str,
        tell: Callable[[int, int], Any],
        share: bool,
    ) -> None:
        self.path, self.expected, self._tell = path, expected, tell
        self._seed, self._share = seed, share
        self.faults: list[str] = []
        self.ended = threading.Event()
        self.vault = self._open()
        works = [
            *(lambda u=user: self._append(u) for user in APPENDERS),
            self._load, self._merge, self._put, self._copy, self._read, self._refresh,
            *([self._attach] if share else []),
        ]  # fmt: skip
        self._threads = [threading.Thread(target=self._guarded, args=(work,)) for work in works]
        for thread in self._threads:
            thread.start()

    def _open(self) -> SeqVault:
        files = SlowFiles(random.Random(f"{self._seed}-files"))
        return SeqVault.open(self.path, schema=SCHEMA, files=files, share=self._share)

    def reopen(self, wait: float) -> None:
        """Closes the store under load and opens it with a new object."""
        store_module.CLOSE_SECONDS = wait
        self.vault.close()
        self.vault = self._open()

    def stop(self) -> None:
        """Ends all threads and closes the store."""
        self.ended.set()
        self.vault.close()
        for thread in self._threads:
            thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.faults.append(f"{getattr(work, '__name__', work)}: {error!r}")

    def _call(self, method: str, *arguments: Any, **named: Any) -> bool:
        """Whether the call went through; it may have found the store closed."""
        try:
            getattr(self.vault, method)(*arguments, **named)
            return True
        except StoreClosedError:
            time.sleep(0.001)
            return False

    def _acknowledge(self, user: int, many: int) -> None:
        self.expected.acknowledged[user] = many
        self._tell(user, many)

    def _append(self, user: int) -> None:
        rng = random.Random(f"{self._seed}-{user}")
        first, number = self._begun(user), int(time.time() * 1e6)
        while not self.ended.is_set():
            events = self._events(user, first, rng.choice((1, 3, 40, 400)))
            first = self.expected.issued[user]
            # again until it is taken: the offset tells the store what it has
            while not self._call("append", events, source=f"user-{user}", offset=number):
                if self.ended.is_set():
                    return
            self._acknowledge(user, first)
            number += 1
            time.sleep(rng.random() * 0.01)

    def _begun(self, user: int) -> int:
        """How many events the user has: more may be there than were acknowledged."""
        while not self.ended.is_set():
            with suppress(StoreClosedError):
                batch = self.vault.read([user], before=None, last_n=LAST_N)
                self.expected.issued[user] = int(batch.lengths[0])
                return int(batch.lengths[0])
        return self.expected.issued[user]

    def _events(self, user: int, first: int, count: int) -> dict[str, np.ndarray]:
        places = np.arange(first, first + count)
        self.expected.issued[user] = first + count
        return {
            "user_id": np.full(count, user),
            "timestamp": NOW + places,
            "item_id": places,
            "action": (places % 7).astype(np.int8),
        }

    def _load(self) -> None:
        rng = random.Random(f"{self._seed}-load")
        while not self.ended.wait(rng.random() * 0.3):
            first = self._begun(LOADER)
            parts = [self._events(LOADER, first + 200 * k, 200) for k in range(3)]
            if self._call("bulk_load", self._slowly(parts, rng)):
                self._acknowledge(LOADER, first + 600)

    def _slowly(self, parts: list[Any], rng: random.Random) -> Any:
        for part in parts:
            time.sleep(rng.random() * 0.02)
            yield part

    def _merge(self) -> None:
        rng = random.Random(f"{self._seed}-merge")
        while not self.ended.wait(rng.random() * 0.03):
            self._call("merge", hold_small=rng.random() < 0.5)

    def _put(self) -> None:
        rng = random.Random(f"{self._seed}-items")
        value = self.expected.issued[-1]
        while not self.ended.wait(rng.random() * 0.05):
            value += 1
            self.expected.issued[-1] = value
            table = {"item_id": ITEMS, "value": np.full(len(ITEMS), value)}
            if self._call("put_items", table):
                self._acknowledge(-1, value)

    def _copy(self) -> None:
        rng, number = random.Random(f"{self._seed}-copy"), 0
        while not self.ended.wait(rng.random() * 0.5):
            number += 1
            target = f"{self.path}-copy-{number}"
            shutil.rmtree(target, ignore_errors=True)
            least = dict(self.expected.acknowledged)
            if self._call("snapshot", target):
                with SeqVault.open(target, read_only=True) as copy:
                    copy.verify()
                    self._check(copy, least, "a snapshot")

    def _read(self) -> None:
        while not self.ended.wait(0.005):
            least = dict(self.expected.acknowledged)
            with suppress(StoreClosedError):
                self._check(self.vault, least, "a read")

    def _refresh(self) -> None:
        with SeqVault.open(self.path, read_only=True) as beside:
            least = dict(self.expected.acknowledged)
            while not self.ended.wait(0.01):
                ahead = dict(self.expected.acknowledged)
                with suppress(StoreFailedError):  # it changes faster than it can be opened
                    beside.refresh()
                    least = ahead
                self._check(beside, least, "a read beside the writer")

    def _attach(self) -> None:
        attached: SeqVault | None = None
        while not self.ended.wait(0.005):
            try:
                with suppress(LimitError):  # it changes faster than it can be looked up: again
                    attached = attached or SeqVault.attach(self.path)
                    least = dict(self.expected.acknowledged)
                    self._check(attached, least, "an attached read")
            except (NotSharedError, WriterGoneError):  # closed; what is acknowledged from now on
                attached = None  # it must not seem to know

    def _check(self, vault: SeqVault, least: dict[int, int], what: str) -> None:
        wrong = self.expected.fault_in(vault, least)
        assert not wrong, f"{what}: {wrong}"
