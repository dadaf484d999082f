"""SeqVault: a durable store of user behaviour sequences.

Example:
    >>> import tempfile, pyarrow as pa
    >>> from seqvault import Schema, SeqVault
    >>> schema = Schema.from_arrow(pa.schema([("item_id", pa.int64())]))
    >>> vault = SeqVault.open(tempfile.mkdtemp() + "/vault", schema=schema)
    >>> vault.append({"user_id": [1], "timestamp": [1_700_000_000_000], "item_id": [42]})
    1
    >>> vault.read([1], before=1_700_000_000_001, last_n=2)["item_id"].tolist()
    [[42, 0]]
    >>> vault.close()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqvault.item_batch import ItemBatch
    from seqvault.opening import open
    from seqvault.schema import Field, Schema
    from seqvault.sequence_batch import SequenceBatch
    from seqvault.service.client import SeqVaultClient
    from seqvault.service.sharded_client import ShardedClient
    from seqvault.store import SeqVault

__all__ = ["Field", "ItemBatch", "Schema", "SeqVault", "SequenceBatch", "connect", "open"]

# Loaded at first use: the store brings numba, which `seqvault --help` need not wait for.
_HOMES = {
    "Field": "schema",
    "ItemBatch": "item_batch",
    "Schema": "schema",
    "open": "opening",
    "SeqVault": "store",
    "SequenceBatch": "sequence_batch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'seqvault' has no attribute {name!r}")
    value = getattr(import_module(f"seqvault.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def connect(
    target: str,
    token: str | None = None,
    ca: bytes | None = None,
    key: bytes | None = None,
    certificate: bytes | None = None,
    timeout: float = 10.0,
    compress: bool = False,
    hedge_seconds: float = 0.1,
) -> "SeqVaultClient | ShardedClient":
    """Connects to one or more SeqVault servers; returns a client with the methods of ``SeqVault``.

    Args:
        target: ``host:port``; shards are separated by commas, replicas of a shard by bars:
            ``a1:7420|a2:7420,b1:7420|b2:7420``. The order of shards must not change; to add one,
            follow ``docs/seqvault/operations.md``.
        token: bearer token, if the server asks for one.
        ca: PEM of the authority that signed the server's certificate; None: plain text.
        key, certificate: PEM of the client's own, for mutual TLS.
        timeout: seconds that a call may take.
        compress: answers compressed with zstd, for slow links.
        hedge_seconds: that a replica has for a read before the next one is asked, too; the
            first answer counts.

    Raises:
        ServerUnavailableError: no server answers there.
        AccessDeniedError: the token is not good; ``TlsError``: the certificates are not.
    """
    from functools import partial

    from seqvault.service.client import SeqVaultClient
    from seqvault.service.sharded_client import ShardedClient

    options = (token, ca, key, certificate, timeout, compress)
    if "," not in target and "|" not in target:
        return SeqVaultClient(target, *options)
    return ShardedClient(
        [
            [partial(SeqVaultClient, replica.strip(), *options) for replica in shard.split("|")]
            for shard in target.split(",")
        ],
        hedge_seconds,
    )
