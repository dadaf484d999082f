"""The encodings of a read reply: how each is built and decoded."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import zstandard

from seqvault.errors import InvalidRequestError
from seqvault.read.packed_answer import unpack_batch
from seqvault.schema import DTYPE_NAMES
from seqvault.sequence_batch import SequenceBatch
from seqvault.service import seqvault_pb2 as pb
from seqvault.store import SeqVault

OFFERED = (pb.DENSE, pb.DENSE_ZSTD, pb.PACKED)
ZSTD_LEVEL = 1
# Chunks travel whole: for fewer events of a user than a chunk has, dense answers are smaller.
PACKED_FROM = 256
# To pack and unpack takes time of its own, which fewer bytes make up for in large answers only.
PACKED_EVENTS = 8192


def read_reply(vault: SeqVault, arguments: Mapping[str, Any], encoding: int) -> Any:
    """The ``ReadReply`` of a read.

    Args:
        vault: the store.
        arguments: those of ``SeqVault.read``.
        encoding: a value of ``Encoding``.

    Raises:
        InvalidRequestError: an encoding that is not offered; and what the read raises.
    """
    if encoding not in OFFERED:
        names = [pb.Encoding.Name(one) for one in OFFERED]
        raise InvalidRequestError(f"encoding {encoding} is not offered; ask for one of {names}.")
    if encoding == pb.PACKED:
        return pb.ReadReply(packed=vault.read_packed(**arguments), encoding=encoding)
    lengths, version, columns = vault.read_ragged(**arguments)
    pack = zstandard.ZstdCompressor(ZSTD_LEVEL).compress if encoding == pb.DENSE_ZSTD else bytes
    return pb.ReadReply(
        lengths=lengths.tobytes(),
        version=version.tobytes(),
        columns=[
            pb.Column(name=name, dtype=DTYPE_NAMES[values.dtype], values=pack(values.tobytes()))
            for name, values in columns.items()
        ],
        encoding=encoding,
    )


def batch_of(reply: Any, users: np.ndarray, last_n: int) -> SequenceBatch:
    """The [B, L] arrays of a reply in any encoding.

    Raises:
        DamagedFileError: a packed reply is not whole.
    """
    if reply.encoding == pb.PACKED:
        return unpack_batch(reply.packed)
    lengths = np.frombuffer(reply.lengths, "<i4")
    mask = np.arange(last_n)[None, :] < lengths[:, None]
    unpack = zstandard.ZstdDecompressor().decompress if reply.encoding == pb.DENSE_ZSTD else bytes
    columns = {}
    for column in reply.columns:
        columns[column.name] = np.zeros((len(users), last_n), column.dtype)
        columns[column.name][mask] = np.frombuffer(unpack(column.values), column.dtype)
    return SequenceBatch(users, lengths, columns, np.frombuffer(reply.version, "<i8"))
