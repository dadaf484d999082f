"""What can be known to be wrong with a training cluster before any work is done for it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from laser_features import FeatureSpec
from tfx_pipeline.errors import ClusterError
from tfx_pipeline.training.cluster import Cluster

ANSWER_SECONDS = 300.0
"""How long the tasks of a cluster may take to come up; they often start with the chief."""
_CONNECT_SECONDS = 5.0
_BETWEEN_SECONDS = 1.0
_FRAME_HEADER, _SETTINGS = 9, 4
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])


def check_cluster(
    cluster: Cluster | None,
    spec: FeatureSpec,
    say: Callable[[str], None] = print,
    seconds: float = ANSWER_SECONDS,
) -> None:
    """Raise unless this process is the chief, every table can be split and every task answers.

    Args:
        cluster: From TF_CONFIG; None trains in this process, where there is nothing to check.
        spec: Its tables are split by rows over the parameter servers.
        say: Receives a line if tasks have to be waited for.
        seconds: How long to wait for them.

    Raises:
        ClusterError: Says what is wrong, or which tasks do not answer.
    """
    if cluster is None:
        return
    cluster.check_chief()
    for name, table in spec.tables.items():
        if table.rows < cluster.parameter_servers:
            raise ClusterError(
                f"table {name!r} has {table.rows} rows, which cannot be split over "
                f"{cluster.parameter_servers} parameter servers: use fewer servers or more rows"
            )
    silent = _silent(cluster)
    if silent:
        say(f"waiting for {', '.join(silent)}")
    deadline = time.monotonic() + seconds
    while silent and time.monotonic() < deadline:
        time.sleep(_BETWEEN_SECONDS)
        silent = _silent(cluster)
    if silent:
        raise ClusterError(
            f"no answer within {seconds:.0f} s from {', '.join(silent)} that TF_CONFIG names: "
            "start `python -m tfx_pipeline.training.cluster` there, or correct the addresses"
        )


def _silent(cluster: Cluster) -> list[str]:
    """Servers and workers that give no answer."""
    return [
        f"{job}:{index} ({address})"
        for job in ("ps", "worker")
        for index, address in enumerate(cluster.addresses[job])
        if not answers(address)
    ]


def answers(address: str) -> bool:
    """Whether a server of TensorFlow is alive at "host:port".

    That it takes a connection says little: the kernel takes it for a process that hangs. A gRPC
    server that runs greets with a SETTINGS frame of HTTP/2 (RFC 9113, section 3.4).
    """
    host, _, port = address.rpartition(":")
    try:
        place = (host.strip("[]"), int(port))
        with socket.create_connection(place, _CONNECT_SECONDS) as connection:
            connection.sendall(_GREETING)
            header = connection.recv(_FRAME_HEADER, socket.MSG_WAITALL)
    except (OSError, ValueError, OverflowError):
        return False
    return len(header) == _FRAME_HEADER and header[3] == _SETTINGS
