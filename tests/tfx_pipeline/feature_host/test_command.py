"""``laser-pipeline feature-host`` as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request

import pytest
import yaml

from tfx_pipeline.feature_host.feature_hosts import FeatureHosts

RATE = 0.8


@pytest.fixture
def command(hosted, tmp_path):
    config = hosted.config
    splits = {name: {"start": part.start, "end": part.end} for name, part in config.splits.items()}
    content = {
        "name": "hosted",
        "splits": splits,
        "rows_per_file": config.rows_per_file,
        "negative_rate": RATE,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return [
        sys.executable, "-m", "tfx_pipeline.cli", "feature-host", "--listen", "127.0.0.1:0",
        "--data", str(config.dataset), "--store", config.store,
        "--config", str(tmp_path / "config.yaml"),
    ]  # fmt: skip


def test_a_host_serves_until_it_is_told_to_end(hosted, command):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as host:
        try:
            lines = []
            for line in host.stdout:
                lines.append(line.strip())
                if line.startswith("serves at "):
                    break
            address = lines[-1].removeprefix("serves at ")
            assert lines[0] == "reading the requests"
            assert lines[-2].startswith("hosted: ") and "of train in 3 shards" in lines[-2]
            hosts = FeatureHosts([address], hosted.spec, RATE)
            assert len(hosts.shards("train")) == len(hosted.shards.numbers("train"))
            order = {"batch_size": 8, "shuffle_buffer": 8, "seed": 1}
            assert hosts.open(hosts.shards("eval")[0], order).batches > 1
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
                assert "laser_feature_host_streams 1.0" in answer.read().decode()
            host.send_signal(signal.SIGTERM)
            assert host.wait(30) == 0
            assert host.stdout.read() == "ended\n"
        finally:
            host.kill()
