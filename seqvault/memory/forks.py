"""Handles ``fork`` in a process with open stores."""

import os
import threading
import weakref
from contextlib import suppress

from seqvault.memory.store_state import State

_stores: "weakref.WeakSet[State]" = weakref.WeakSet()
_guard = threading.Lock()  # of the set
_held: list[State] = []  # whose locks the thread that forks has


def watch_forks(state: State) -> None:
    """Registers the store for fork handling, by weak reference."""
    with _guard:
        _stores.add(state)


def _before() -> None:
    """Holds all stores' locks during the fork, so that the child gets a consistent copy."""
    _guard.acquire()
    _held[:] = sorted(_stores, key=id)
    for state in _held:
        state.lock.acquire()


def _in_parent() -> None:
    for state in _held:
        state.lock.release()
    _held.clear()
    _guard.release()


def _in_child() -> None:
    for state in _held:
        state.after_fork_in_child()
    _held.clear()
    with suppress(RuntimeError):
        _guard.release()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
