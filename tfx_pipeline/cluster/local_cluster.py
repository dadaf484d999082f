"""What a cluster on this machine consists of, read from ``local:ps=2,workers=2``."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tfx_pipeline.cluster.exit_codes import EXIT_BAD_CLUSTER, EXIT_PORT_IN_USE
from tfx_pipeline.cluster.read_counts import read_counts
from tfx_pipeline.errors import ClusterError

_FORM = "local:ps=2,workers=2 (further: port=20000, restarts=5)"
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LARGEST = {"ps": 64, "workers": 256, "port": 65535, "restarts": 1_000_000}


@dataclass(frozen=True)
class LocalCluster:
    """Numbers of roles on this machine, beside the chief.

    Attributes:
        ps: Parameter servers.
        workers: Workers.
        port: First of as many consecutive ports; 0 finds free ones.
        restarts: How often a role is restarted within ten minutes before the run is given up.

    Example:
        >>> LocalCluster.parse("local:ps=2,workers=3")
        LocalCluster(ps=2, workers=3, port=0, restarts=5)
    """

    ps: int
    workers: int
    port: int = 0
    restarts: int = 5

    @classmethod
    def parse(cls, text: str) -> LocalCluster:
        """Read a description.

        Raises:
            ClusterError: It names no servers or no workers, or something that does not fit.
        """
        cluster = cls(**read_counts(text, "local", _LARGEST, _FORM))
        if cluster.port and cluster.port + cluster.ps + cluster.workers > 65536:
            raise ClusterError(
                f"cluster {text!r}: its ports go beyond 65535; give {_FORM}", EXIT_BAD_CLUSTER
            )
        return cluster

    def addresses(self) -> dict[str, list[str]]:
        """Addresses of all tasks by job, as TF_CONFIG wants them; all ports are free now.

        Raises:
            ClusterError: A port that was asked for is in use.
        """
        count = 1 + self.ps + self.workers
        wanted = range(self.port, self.port + count)
        if self.port:
            check_free(wanted)
        ports = list(wanted) if self.port else _free_ports(count)
        hosts = [f"localhost:{port}" for port in ports]
        return {"chief": hosts[:1], "ps": hosts[1 : 1 + self.ps], "worker": hosts[1 + self.ps :]}


def check_free(ports: Iterable[int]) -> None:
    """Raise unless nothing listens at any of the ports.

    gRPC shares a port with whoever else allows it, and then calls go to either of them: so this is
    asked before a server starts, with a socket that shares nothing.

    Raises:
        ClusterError: Names the port.
    """
    for port in ports:
        if not _is_free(port):
            raise ClusterError(
                f"port {port} is in use by another process: end it, or give the cluster other "
                "ports",
                EXIT_PORT_IN_USE,
            )


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed ones linger
        try:
            listener.bind(("", port))
            listener.listen(1)
        except OSError:
            return False
    return True


def _free_ports(count: int) -> list[int]:
    """Free ports that the system gives to no outgoing connection: a restarted role needs its own
    again."""
    try:
        first = int(_EPHEMERAL.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        first = 32768
    candidates = list(range(max(1024, min(first, 32768) - 16384), first))
    random.SystemRandom().shuffle(candidates)
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            break
        if _is_free(port):
            found.append(port)
    if len(found) < count:
        raise ClusterError(f"{count} free ports were not found", EXIT_PORT_IN_USE)
    return found
