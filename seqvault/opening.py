"""Opens a store by directory or by server address."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqvault.schema import Schema
    from seqvault.service.client import SeqVaultClient
    from seqvault.service.sharded_client import ShardedClient
    from seqvault.store import SeqVault

    AnyStore = SeqVault | SeqVaultClient | ShardedClient

File = str | os.PathLike[str]


def open(
    where: File,
    schema: "Schema | None" = None,
    read_only: bool = False,
    token_file: File | None = None,
    ca: File | None = None,
    key: File | None = None,
    certificate: File | None = None,
    timeout: float = 10.0,
) -> "AnyStore":
    """Opens the store in a directory, or connects to servers; both have the same methods.

    Use it where a configuration or a command line names the store; ``SeqVault.open`` and
    ``seqvault.connect`` have what only the one or the other can do.

    Args:
        where: a directory, or addresses as ``seqvault.connect`` takes them; a directory
            of that name comes first.
        schema: of a directory: the store's, created if it is not there.
        read_only: of a directory: whether another process may be writing.
        token_file, ca, key, certificate: of servers: files with the token, the PEM of the
            authority that signed their certificate, and the PEM of the client's own.
        timeout: of servers: seconds that a call may take.

    Raises:
        SeqVaultError: it is not there, locked, damaged or not reachable, or no access.
        OSError: a file named here cannot be read.

    Example:
        >>> import tempfile, pyarrow as pa, seqvault
        >>> schema = seqvault.Schema.from_arrow(pa.schema([("item_id", pa.int64())]))
        >>> with seqvault.open(tempfile.mkdtemp() + "/vault", schema=schema) as store:
        ...     store.append({"user_id": [1], "timestamp": [1000], "item_id": [42]})
        1
    """
    from seqvault.service.address import is_address

    if not is_address(where):
        from seqvault.store import SeqVault

        return SeqVault.open(where, schema=schema, read_only=read_only)
    from seqvault import connect

    token = _content(token_file)
    return connect(
        os.fspath(where),
        token=None if token is None else token.decode().strip(),
        ca=_content(ca),
        key=_content(key),
        certificate=_content(certificate),
        timeout=timeout,
    )


def _content(file: File | None) -> bytes | None:
    return None if file is None else Path(file).read_bytes()
