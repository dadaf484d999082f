"""All Beam stages on workers that share the store's address, folders and the code, and no more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from components.serving_check.server_process import free_port
from seqvault import SeqVault
from seqvault.service.server import Server
from tfx_pipeline.config import REPORT, load_config
from tfx_pipeline.datasets import prepare
from tfx_pipeline.load_store import load_store
from tfx_pipeline.results.past_runs import read_runs
from tfx_pipeline.runners.local import run_local

from .conftest import SETTINGS

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture
def pool(tmp_path):
    """Address of a worker pool in a process of its own, and what it printed."""
    port = free_port()
    log = tmp_path / "pool.log"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, f"--service_port={port}"], stderr=file, env=environment, cwd="/"
        )
    yield f"localhost:{port}", log
    process.terminate()
    process.wait(60)


def test_examples_vocabularies_and_evaluation_are_those_of_the_local_runner(
    tmp_path, small_config, pool
):
    address, log = pool
    dataset = prepare(None, tmp_path / "dataset", generator=SETTINGS)
    load_store(dataset.path, tmp_path / "store")
    far = [
        "--runner=PortableRunner",
        "--job_endpoint=embed",
        "--environment_type=EXTERNAL",
        f"--environment_config={address}",
        "--sdk_container_image=external",
    ]

    def run(name, store, **overrides):
        config = load_config(
            str(small_config), dataset.path, store, tmp_path / name, {"min_auc": 0.0, **overrides}
        )
        run_local(config, lambda line: None)
        (done,) = read_runs(config.metadata)
        return done, json.loads((config.work / REPORT).read_text())

    local, here = run("local", tmp_path / "store")
    with SeqVault.open(tmp_path / "store") as vault:
        server = Server(vault, merge_seconds=0)
        try:
            distant, there = run("distant", f"localhost:{server.port}", beam_args=far)
        finally:
            server.stop(0)
    assert log.read_text().count("Starting worker with command") >= 4  # a worker per Beam stage

    def records(done, split):
        folder = Path(done.nodes["SeqVaultExampleGen"].output("examples")[0])
        files = sorted((folder / f"Split-{split}").iterdir())
        return [
            (path.name, list(tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator()))
            for path in files
        ]

    for split in ("train", "eval"):
        assert len(records(local, split)[0][1]) > 10
        assert records(local, split) == records(distant, split)
    assert here["join"] == there["join"]

    def vocabularies(done):
        folder = Path(done.nodes["Transform"].output("transform_graph")[0])
        return {path.name: path.read_bytes() for path in (folder / "transform_fn/assets").iterdir()}

    assert vocabularies(local) == vocabularies(distant)
    assert here["evaluation"] == there["evaluation"]
    assert here["statistics"] == there["statistics"]
