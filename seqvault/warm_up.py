"""Compiles the kernels, or loads them from numba's cache, ahead of the first call."""

import sys
import tempfile
import threading

import numpy as np

from seqvault.read.packed_answer import unpack_batch
from seqvault.schema import Field, Schema
from seqvault.store import SeqVault

_QUIET_SECONDS = 2.0


def warm_up() -> None:
    """Compiles every kernel by running it once on a temporary store.

    Call it before serving, or run ``seqvault warm-up`` when building an image. The first run in an
    environment compiles for half a minute to two minutes, with a notice on stderr; later ones only
    load the cache.
    """
    notice = threading.Timer(_QUIET_SECONDS, _say_why_it_takes_long)
    notice.daemon = True
    notice.start()
    try:
        _run_kernels()
    finally:
        notice.cancel()


def _say_why_it_takes_long() -> None:
    text = "seqvault: compiling the kernels, once in this environment; this takes a minute or two"
    print(text, file=sys.stderr, flush=True)


def _run_kernels() -> None:
    schema = Schema((Field("item_id", "int64", "item"), Field("action", "int8", "action")))
    events = {
        "user_id": np.zeros(300, np.int64),
        "timestamp": np.arange(300)[::-1],
        "item_id": np.arange(300),
        "action": np.zeros(300, np.int8),
    }
    with tempfile.TemporaryDirectory() as directory:
        with SeqVault.open(directory + "/vault", schema=schema) as vault:
            for _ in range(2):
                vault.append(events)
                vault.merge()
            vault.append(events)
            vault.read([0], before=400, last_n=9)
            vault.read([0], before=400, last_n=9, actions=[0])
            vault.read_framed([0], before=400, last_n=9)
            unpack_batch(vault.read_packed([0], before=400, last_n=9))
            vault.put_items({"item_id": [1], "value": [1]})
            vault.read_items([1])
        with SeqVault.open(directory + "/vault") as vault:
            vault.verify()
