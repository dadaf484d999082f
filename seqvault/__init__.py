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

from seqvault.item_batch import ItemBatch
from seqvault.schema import Field, Schema
from seqvault.sequence_batch import SequenceBatch
from seqvault.store import SeqVault

__all__ = ["Field", "ItemBatch", "Schema", "SeqVault", "SequenceBatch"]
