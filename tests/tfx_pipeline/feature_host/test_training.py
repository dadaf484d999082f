"""Training from feature hosts: bit for bit as from files of Examples, also when hosts are lost."""

from __future__ import annotations

import json
import threading

import numpy as np

from tfx_pipeline.feature_host.feature_hosts import FeatureHosts


def assert_same(trained, hosts, by_files):
    expected, totals = by_files
    state = trained.numpy_state()
    for name, value in expected.items():
        assert state[name].tobytes() == value.tobytes(), name
    found = trained.evaluate(hosts.shards("eval"))
    assert np.array_equal(found.histogram, totals.histogram)
    assert found.loss_sum == totals.loss_sum


def test_weights_are_those_of_files_bit_for_bit_whoever_is_lost(
    hosted, training, start_host, die_after, by_files, tmp_path
):
    one, other = start_host(), start_host()
    lines = []
    addresses, rate = [one.address, other.address], hosted.config.negative_rate
    hosts = FeatureHosts(addresses, hosted.spec, rate, say=lines.append)
    trained = training.trainer(feature_hosts=hosts, report=lines.append, log_dir=str(tmp_path))
    port = one.control.port
    die_after(one, 3)
    # Now nobody is left, until another host is started in place of the first one.
    die_after(other, 8, then=lambda: threading.Timer(1.0, start_host, (port,)).start())
    trained.train(hosts.shards("train"))
    assert any("goes on with batch" in line for line in lines)
    assert any(line.startswith("waiting for a feature host") for line in lines)
    assert_same(trained, hosts, by_files)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shares = [each["input_wait"] for each in logged if each["split"] == "train"]
    assert len(shares) == training.settings.epochs and all(0 <= share <= 1 for share in shares)
    assert any("waiting for input" in line for line in lines)
