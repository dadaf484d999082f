"""Opens the store that a join reads from."""

from __future__ import annotations

import os
from typing import Any

import seqvault

_SECONDS_PER_CALL = 60.0  # of a busy server: a join has time, and a call that fails costs a bundle


def open_store(where: str | os.PathLike[str]) -> Any:
    """Open a SeqVault for reading, beside whatever process writes to it, or connect to servers.

    Args:
        where: A store's folder, or an address as ``seqvault.connect`` takes it.

    Raises:
        SeqVaultError: It does not exist, is damaged, or no server answers.
    """
    return seqvault.open(where, read_only=True, timeout=_SECONDS_PER_CALL)
