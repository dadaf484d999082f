"""Trains over a local cluster until it is done or asked to stop.

Usage: supervise.py DESCRIPTION JOB FOLDER
"""

import sys
from pathlib import Path

from tfx_pipeline.cluster.supervisor import train_on_local_cluster
from tfx_pipeline.cluster.training_job import TrainingJob

if __name__ == "__main__":
    description, job, folder = sys.argv[1:]
    try:
        train_on_local_cluster(description, TrainingJob.load(Path(job)), Path(folder))
    except KeyboardInterrupt as stopped:
        print(stopped)
        sys.exit(130)
