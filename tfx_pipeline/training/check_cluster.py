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
    """Servers and workers that take no connection."""
    return [
        f"{job}:{index} ({address})"
        for job in ("ps", "worker")
        for index, address in enumerate(cluster.addresses[job])
        if not answers(address)
    ]


def answers(address: str) -> bool:
    """Whether something takes a connection at "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True
