"""A cluster trains from feature hosts and outlives the loss of a host and of a worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tfx_pipeline.cluster.local_cluster import LocalCluster
from tfx_pipeline.settings.section import plain

ROOT = Path(__file__).parents[3]


class Roles:
    """A server, a worker and a chief as processes."""

    def __init__(self, job, output):
        self._addresses = LocalCluster(1, 1).addresses()
        serve = ["-m", "tfx_pipeline.training.cluster"]
        self.server = self._start("ps", serve)
        self.worker = self.start_worker()
        chief = [str(Path(__file__).with_name("chief.py")), str(job), str(output)]
        self.chief = self._start("chief", chief, stdout=subprocess.PIPE, text=True)

    def start_worker(self):
        self.worker = self._start("worker", ["-m", "tfx_pipeline.training.cluster"])
        return self.worker

    def _start(self, job, command, **options):
        task = {"cluster": self._addresses, "task": {"type": job, "index": 0}}
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps(task),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        return subprocess.Popen([sys.executable, *command], env=environment, **options)

    def end(self):
        for each in (self.chief, self.worker, self.server):
            each.kill()
            each.wait()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("lost", ["host", "worker"])
def test_a_cluster_takes_every_batch(
    hosted, training, by_files, start_host, die_after, tmp_path, lost
):
    one, other = start_host(), start_host()
    settings = replace(training.settings, feature_hosts=(one.address, other.address))
    job = {
        "spec": hosted.spec.to_dict(),
        "model": plain(training.model),
        "training": plain(settings),
        "negative_rate": hosted.config.negative_rate,
        "vocabularies": {k: v.tolist() for k, v in training.lookup.vocabularies.items()},
        "boundaries": {k: v.tolist() for k, v in training.lookup.boundaries.items()},
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    roles = Roles(tmp_path / "job.json", tmp_path / "state.npz")

    def lose_worker():
        roles.worker.kill()
        roles.worker.wait()
        roles.start_worker()

    try:
        if lost == "host":
            die_after(one, 3)
        else:
            die_after(one, 3, instead=lose_worker)
        output, _ = roles.chief.communicate()
    finally:
        roles.end()
    assert output.endswith("written\n"), output
    logged = (tmp_path / "state.npz.logs" / "metrics.jsonl").read_text().splitlines()
    looks = [each for each in map(json.loads, logged) if each["split"] == "model"]
    assert len(looks) == settings.epochs and all("gate_segment_0" in each for each in looks)
    found = np.load(tmp_path / "state.npz")
    expected, totals = by_files
    batches = settings.epochs * sum(
        -(-len(hosted.shards.requests("train", shard)) // settings.batch_size)
        for shard in hosted.shards.numbers("train")
    )
    if lost == "host":
        assert "goes on with batch" in output
        assert found["step"] == batches
        for name, value in expected.items():
            assert found[name].tobytes() == value.tobytes(), name
        assert np.array_equal(found["eval_histogram"], totals.histogram)
    else:  # the batch it was at may be taken twice
        assert batches <= found["step"] <= batches + 1
