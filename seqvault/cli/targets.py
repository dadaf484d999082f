"""What a command works on: a directory, or servers."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from seqvault.service.address import is_address

if TYPE_CHECKING:
    from seqvault import SeqVault
    from seqvault.service.client import SeqVaultClient
    from seqvault.service.sharded_client import ShardedClient

    Store = SeqVault | SeqVaultClient | ShardedClient


def open_target(arguments: argparse.Namespace, read_only: bool) -> "Store":
    """Opens the directory, or connects with the token and certificates given.

    Raises:
        SeqVaultError: not there, locked, damaged, not reachable, no access.
    """
    if not is_address(arguments.path):
        from seqvault.store import SeqVault

        return SeqVault.open(arguments.path, read_only=read_only)
    from seqvault import connect

    return connect(
        arguments.path,
        token=Path(arguments.token_file).read_text().strip() if arguments.token_file else None,
        ca=_content(arguments.ca),
        key=_content(arguments.client_key),
        certificate=_content(arguments.client_cert),
        timeout=arguments.timeout,
    )


def _content(path: str | None) -> bytes | None:
    return Path(path).read_bytes() if path else None
