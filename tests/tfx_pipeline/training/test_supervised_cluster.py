"""A supervised cluster of TensorFlow processes outlives the loss of a worker and of a server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tfx_pipeline.cluster.training_job import TrainingJob
from tfx_pipeline.settings.section import plain
from tfx_pipeline.training.checkpoint import Position
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer

ROOT = Path(__file__).parents[3]
SECONDS = 600
"""For one step of the story; processes import TensorFlow on a machine that may be busy."""


class Run:
    """A supervisor in a process of its own, and what it shows."""

    def __init__(self, job, folder):
        self.folder = folder / "cluster"
        self.checkpoints = folder / "checkpoints"
        path = job.save(folder / "job.json")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("supervise.py")), "local:ps=1,workers=1",
             str(path), str(self.folder)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def roles(self):
        try:
            return {
                each["role"]: each
                for each in json.loads((self.folder / "cluster.json").read_text())
            }
        except (OSError, ValueError):
            return {}

    def newest(self):
        numbers = [int(path.stem[5:]) for path in self.checkpoints.glob("ckpt-*.index")]
        return max(numbers, default=-1)

    def wait(self, condition):
        end = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < end, f"waited in vain: {self.roles()}"
            time.sleep(0.2)

    def lose(self, role):
        """Kill a role and wait until a later checkpoint was written."""
        self.wait(lambda: role in self.roles())
        before = self.roles()[role]
        os.kill(before["pid"], signal.SIGKILL)
        self.wait(lambda: self.roles()[role]["restarts"] > before["restarts"])
        reached = self.newest()
        self.wait(lambda: self.newest() > reached)


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_cluster_goes_on_after_losses_and_saves_when_it_is_stopped(
    plain_spec, laser_settings, settings, write_files, tmp_path
):
    files = write_files(tmp_path, plain_spec, files=2, requests=32)
    endless = replace(settings, epochs=100_000)
    job = TrainingJob(
        train_files=files,
        eval_files=files,
        transform_graph_path=None,
        serving_model_dir=str(tmp_path / "model"),
        model_run_dir=str(tmp_path),
        custom_config={
            "feature_spec": plain_spec.to_dict(),
            "model": plain(laser_settings),
            "training": plain(endless),
        },
    )
    run = Run(job, tmp_path)
    try:
        run.wait(lambda: run.newest() >= 0)
        run.lose("worker:0")
        run.lose("ps:0")
        pids = [role["pid"] for role in run.roles().values()]
        run.process.send_signal(signal.SIGTERM)
        said, _ = run.process.communicate(timeout=SECONDS)
        assert run.process.returncode == 130, said
    finally:
        run.process.kill()
    assert "worker:0 ended (SIGKILL)" in said and "starting worker:0\n" in said
    assert "ps:0 ended (SIGKILL)" in said and "starting ps:0, chief:0\n" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    # The same checkpoints go on without servers.
    alone = Trainer(
        plain_spec, laser_settings, endless, RowLookup(), directory=str(tmp_path / "checkpoints")
    )
    assert alone._checkpoints.restore() > Position(1, 0)
