"""The encodings of a read's answer: which are offered, and how each is made and taken apart."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import zstandard

from seqvault.errors import InvalidRequestError
from seqvault.service import seqvault_pb2 as pb
from seqvault.store import SeqVault

ZSTD_LEVEL = 1


class ReadReplies:
    """Answers reads of a store in the encoding asked for; safe for many threads."""

    offered = (pb.DENSE, pb.DENSE_ZSTD)

    def __init__(self, vault: SeqVault) -> None:
        self._vault = vault

    def dictionary_bytes(self) -> bytes:
        """The zstd dictionary; empty: none."""
        return b""

    def reply(self, arguments: Mapping[str, Any], encoding: int, dictionary: int) -> Any:
        """The ``ReadReply`` of a read.

        Args:
            arguments: those of ``SeqVault.read``.
            encoding: a value of ``Encoding``.
            dictionary: id of the dictionary that the caller has; 0: none.

        Raises:
            InvalidRequestError: an encoding that is not offered; and what the read raises.
        """
        if encoding not in self.offered:
            names = [pb.Encoding.Name(one) for one in self.offered]
            raise InvalidRequestError(
                f"encoding {encoding} is not offered; ask for one of {names}."
            )
        lengths, version, columns = self._vault.read_ragged(**arguments)
        pack = zstandard.ZstdCompressor(ZSTD_LEVEL).compress if encoding == pb.DENSE_ZSTD else bytes
        return pb.ReadReply(
            lengths=lengths.tobytes(),
            version=version.tobytes(),
            columns=[
                pb.Column(name=name, dtype=values.dtype.name, values=pack(values.tobytes()))
                for name, values in columns.items()
            ],
            encoding=encoding,
        )


def padded(reply: Any, last_n: int) -> dict[str, np.ndarray]:
    """The [B, L] arrays of a dense reply."""
    lengths = np.frombuffer(reply.lengths, "<i4")
    mask = np.arange(last_n)[None, :] < lengths[:, None]
    unpack = zstandard.ZstdDecompressor().decompress if reply.encoding == pb.DENSE_ZSTD else bytes
    columns = {}
    for column in reply.columns:
        columns[column.name] = np.zeros((len(lengths), last_n), column.dtype)
        columns[column.name][mask] = np.frombuffer(unpack(column.values), column.dtype)
    return columns
