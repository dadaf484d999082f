"""The chief of a cluster: ``python -m tfx_pipeline.cluster.chief --job FILE --folder FOLDER``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tfx_pipeline.cluster.announcement import Announcement, announced, wait_for_roles
from tfx_pipeline.cluster.end_with_supervisor import end_with_supervisor
from tfx_pipeline.cluster.exit_codes import EXIT_BAD_CLUSTER
from tfx_pipeline.cluster.restart_policy import EXIT_SERVER_LOST
from tfx_pipeline.cluster.training_job import TrainingJob
from tfx_pipeline.errors import ClusterError, ServerLostError
from tfx_pipeline.explain_error import explain

ERROR = "error: "
"""What the last line of a chief that ends itself begins with."""
EXIT_STOPPED = 130
"""It was asked to stop, and has saved what there was."""
_ROLES_SECONDS = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job as the chief of the cluster that TF_CONFIG names."""
    parser = argparse.ArgumentParser(prog="python -m tfx_pipeline.cluster.chief")
    parser.add_argument("--job", type=Path, required=True, help="file of a TrainingJob")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where the roles announce themselves"
    )
    parsed = parser.parse_args(arguments)
    end_with_supervisor()
    try:
        run_as_chief(TrainingJob.load(parsed.job), parsed.folder)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", flush=True)
        return EXIT_STOPPED
    except ServerLostError as error:
        print(f"{ERROR}{error}", file=sys.stderr, flush=True)
        return EXIT_SERVER_LOST
    except Exception as error:
        print(f"{ERROR}{explain(error, parsed.folder)}", file=sys.stderr, flush=True)
        return int(getattr(error, "exit_code", 1))
    return 0


def run_as_chief(job: TrainingJob, folder: Path, seconds: float = _ROLES_SECONDS) -> None:
    """Wait for the other roles, then train, evaluate and export.

    Args:
        job: The run.
        folder: Where the roles announce themselves.
        seconds: How long to wait for them.

    Raises:
        ClusterError: TF_CONFIG is wrong, a role is missing, or one is of another version.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    from tfx_pipeline.training.cluster import Cluster  # loads TensorFlow
    from tfx_pipeline.training.row_frames import built_ops
    from tfx_pipeline.training.run_fn import run_fn
    from tfx_pipeline.training.transmission import BF16_ZSTD, ZSTD

    # The coordinator logs every lost worker at length; it is restarted, and goes on.
    logging.getLogger("tensorflow").setLevel(logging.CRITICAL)

    try:
        cluster = Cluster.from_environment()
    except ClusterError as error:
        raise ClusterError(str(error), EXIT_BAD_CLUSTER) from error
    if cluster is None or cluster.job != "chief":
        raise ClusterError(
            "set TF_CONFIG to a cluster with servers and to its chief's task", EXIT_BAD_CLUSTER
        )
    chief = cluster.addresses.get("chief") or ["localhost"]
    codec = (job.custom_config.get("training") or {}).get("transmission")
    ops = built_ops() if codec in (ZSTD, BF16_ZSTD) else ""
    mine = Announcement.mine("chief:0", chief[0], ops)
    with announced(mine, folder):
        wait_for_roles(mine, cluster.addresses, folder, seconds)
        print("all roles are up", flush=True)
        run_fn(job)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # TensorFlow would take leave of every task first, and wait for ever for one that is gone.
    os._exit(code)
