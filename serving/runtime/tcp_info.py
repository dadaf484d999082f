"""What the kernel knows of a TCP connection before anything is read from it."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple, Protocol

# Of Linux' struct tcp_info: the state is its first byte, tcpi_last_data_recv the 32 bits at 52.
_TCP_INFO = getattr(socket, "TCP_INFO", None)
_LAST_RECEIVED_AT, _SIZE = 52, 56
_TIME_WAIT, _CLOSE, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 6, 7, 8, 9, 11
_ENDED = frozenset((_TIME_WAIT, _CLOSE, _CLOSE_WAIT, _LAST_ACK, _CLOSING))


class TcpInfo(NamedTuple):
    """State of one connection.

    Attributes:
        hung_up: The peer has closed the connection, though bytes of it may still be unread.
        idle_seconds: Since the peer's last bytes came, to a few milliseconds.
    """

    hung_up: bool
    idle_seconds: float


class _Socket(Protocol):
    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


def read_tcp_info(connection: _Socket) -> TcpInfo:
    """Ask the kernel; where it does not tell, the peer is there and its bytes came just now.

    Example:
        >>> import socket
        >>> with socket.create_server(("127.0.0.1", 0)) as server:
        ...     with socket.create_connection(server.getsockname()) as client:
        ...         accepted, _ = server.accept()
        ...         read_tcp_info(accepted).hung_up
        ...     accepted.close()
        False
    """
    if _TCP_INFO is None:
        return TcpInfo(False, 0.0)
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)
    except OSError:  # no TCP, or no connection any more, which reading it will tell
        return TcpInfo(False, 0.0)
    if len(info) < _SIZE:
        return TcpInfo(False, 0.0)
    (milliseconds,) = struct.unpack_from("=I", info, _LAST_RECEIVED_AT)
    return TcpInfo(info[0] in _ENDED, milliseconds / 1e3)
