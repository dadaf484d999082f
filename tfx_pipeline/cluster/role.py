"""One parameter server or worker: ``python -m tfx_pipeline.cluster.role --folder FOLDER``.

TF_CONFIG names the cluster and this process's task in it, as training-operator sets it in a pod.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

from seqvault.end_signals import EndSignals
from tfx_pipeline.cluster.announcement import (
    Announcement,
    announced,
    is_at_work,
    refuse_other_chief,
)
from tfx_pipeline.cluster.end_with_supervisor import SUPERVISOR_PID, end_with_supervisor
from tfx_pipeline.cluster.exit_codes import EXIT_BAD_CLUSTER
from tfx_pipeline.cluster.local_cluster import check_free
from tfx_pipeline.errors import ClusterError


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the task that TF_CONFIG names until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m tfx_pipeline.cluster.role")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where the roles announce themselves"
    )
    folder = parser.parse_args(arguments).folder
    end_with_supervisor()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")  # as ``laser-pipeline`` does
    from tfx_pipeline.training.cluster import Cluster  # loads TensorFlow
    from tfx_pipeline.training.row_frames import load_if_built

    try:
        cluster = Cluster.from_environment()
    except ClusterError as error:
        return _refuse(str(error), EXIT_BAD_CLUSTER)
    if cluster is None or cluster.job not in ("ps", "worker"):
        return _refuse(
            "set TF_CONFIG to a cluster and to a task of type 'ps' or 'worker'", EXIT_BAD_CLUSTER
        )
    address = cluster.addresses[cluster.job][cluster.index]
    mine = Announcement.mine(f"{cluster.job}:{cluster.index}", address, load_if_built())
    try:
        check_free([int(address.rpartition(":")[2])])
        refuse_other_chief(mine, folder)
    except ClusterError as error:
        return _refuse(str(error), error.exit_code)
    with announced(mine, folder):
        return _serve(cluster.serve, mine, folder)


def _serve(serve: Callable[[], None], mine: Announcement, folder: Path) -> int:
    """Serve until SIGTERM, and then until the chief has left: it saves what is here first."""
    ended = EndSignals([signal.SIGTERM])

    def run() -> None:
        try:
            serve()
        except Exception as error:
            print(f"error: {error}", file=sys.stderr, flush=True)

    # In a thread: TensorFlow's join would keep Python from seeing the signal.
    server = Thread(target=run, name="serve", daemon=True)
    server.start()
    while server.is_alive() and not ended.wait(1.0):
        pass
    if not server.is_alive():
        return 1
    while SUPERVISOR_PID not in os.environ and is_at_work("chief:0", folder, mine):
        time.sleep(1.0)
    return 0


def _refuse(line: str, code: int) -> int:
    print(f"error: {line}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # TensorFlow's server has no end of its own
