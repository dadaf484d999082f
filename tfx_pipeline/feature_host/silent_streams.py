"""Ends connections to feature hosts that have gone silent, so that their readers do not wait."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from tfx_pipeline.feature_host.address import parse_address

FEATURE_HOSTS = "LASER_FEATURE_HOSTS"
"""Environment variable of a worker: the addresses of its training's feature hosts, by commas."""
SILENT_SECONDS = 60.0
_LOG = logging.getLogger(__name__)
_FD = "/proc/self/fd"
_LOOK_SECONDS = 2.0
_UNREAD = 0x541B  # FIONREAD
# Of Linux' struct tcp_info: the state is its first byte, tcpi_last_data_recv the 32 bits at 52.
_TCP_INFO = getattr(socket, "TCP_INFO", None)
_ESTABLISHED, _LAST_RECEIVED_AT, _SIZE = 1, 52, 56


class SilentStreams:
    """Looks at this process's connections to some hosts, from a thread.

    The native reader of streams waits for ever for a host that is stopped or has vanished from
    the network. A connection by which nothing has come for some time, though all that came has
    been read, is shut down: its reader then fails as it does when a host ends. Linux alone tells
    this of sockets that others opened; elsewhere nothing is done.

    Args:
        addresses: "host:port" of each host's control; connections to its other ports are streams.
        seconds: How long nothing may come.
        say: Takes a line for each connection that is ended.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        seconds: float = SILENT_SECONDS,
        say: Callable[[str], None] = print,
    ) -> None:
        self._controls = [parse_address(each) for each in addresses]
        self._seconds, self._say = seconds, say
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="silent streams", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        if _TCP_INFO is not None and os.path.isdir(_FD):
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def end_silent(self) -> None:
        """End the connections that are silent now."""
        hosts = {ip for host, _ in self._controls for ip in _addresses_of(host)}
        controls, own = {port for _, port in self._controls}, _listening_ports()
        for name in os.listdir(_FD):
            with suppress(OSError), _tcp_socket(name) as connection:
                ip, port = connection.getpeername()
                if ip not in hosts or port in controls or not self._is_silent(connection):
                    continue
                if connection.getsockname()[1] in own:  # accepted here: this end sends
                    continue
                self._say(
                    f"feature host {ip}:{port} has sent nothing for {self._seconds:.0f} s: its "
                    "stream is ended, and the training asks for another one"
                )
                connection.shutdown(socket.SHUT_RDWR)

    def _is_silent(self, connection: socket.socket) -> bool:
        assert _TCP_INFO is not None
        info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)
        (milliseconds,) = struct.unpack_from("=I", info, _LAST_RECEIVED_AT)
        (unread,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), _UNREAD, b"\0" * 4))
        return info[0] == _ESTABLISHED and not unread and milliseconds > 1e3 * self._seconds

    def _watch(self) -> None:
        while not self._ended.wait(min(_LOOK_SECONDS, self._seconds / 4)):
            try:
                self.end_silent()
            except Exception:  # for instance no descriptor is left: look again later
                _LOG.exception("connections to feature hosts could not be looked at")


def watch_as_worker() -> SilentStreams | None:
    """Look after the streams of the hosts that the environment names, if it names any."""
    named = os.environ.get(FEATURE_HOSTS)
    if not named:
        return None
    watch = SilentStreams(named.split(","), SILENT_SECONDS, lambda line: print(line, flush=True))
    watch.start()
    return watch


def _addresses_of(host: str) -> set[str]:
    with suppress(OSError):
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
        return {str(each[4][0]) for each in found}
    return set()


def _listening_ports() -> set[int]:
    """Ports that this process listens at."""
    ports: set[int] = set()
    for name in os.listdir(_FD):
        with suppress(OSError), _tcp_socket(name) as each:
            if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                ports.add(each.getsockname()[1])
    return ports


def _tcp_socket(name: str) -> socket.socket:
    """A descriptor of this process's own for the IPv4 socket behind another one.

    Raises:
        OSError: There is none (any more).
    """
    if not os.readlink(f"{_FD}/{name}").startswith("socket:"):
        raise OSError("no socket")
    found = socket.socket(fileno=os.dup(int(name)))
    if (found.family, found.type) != (socket.AF_INET, socket.SOCK_STREAM):
        found.close()
        raise OSError("another kind of socket")
    return found
