"""Opens what a command works on: a directory or servers."""

import argparse
from typing import TYPE_CHECKING

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
    import seqvault

    return seqvault.open(
        arguments.path,
        read_only=read_only,
        token_file=arguments.token_file,
        ca=arguments.ca,
        key=arguments.client_key,
        certificate=arguments.client_cert,
        timeout=arguments.timeout,
    )
