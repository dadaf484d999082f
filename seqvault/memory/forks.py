"""What happens to open stores when the process forks."""

import os
import threading
import weakref
from contextlib import suppress

from seqvault.memory.store_state import State

_stores: "weakref.WeakSet[State]" = weakref.WeakSet()
_guard = threading.Lock()  # of the set
_held: list[State] = []  # whose locks the thread that forks has


def watch_forks(state: State) -> None:
    """Has the store told of forks, for as long as it lives."""
    with _guard:
        _stores.add(state)


def _before() -> None:
    """No thread is amid a change of what readers see while the process is copied."""
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
