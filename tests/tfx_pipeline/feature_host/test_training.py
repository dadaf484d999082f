"""Training from feature hosts: bit for bit as from files of Examples, also when hosts are lost."""

from __future__ import annotations

import json
import socket
import threading

import numpy as np
import pytest

from tfx_pipeline.errors import ClusterError
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
    hosted, training, start_host, die_after, hang_after, by_files, tmp_path
):
    """The host that is asked first hangs, as a stopped process does; the other one then ends."""
    one, other = start_host(), start_host()
    lines = []
    addresses, rate = [one.address, other.address], hosted.config.negative_rate
    hosts = FeatureHosts(
        addresses, hosted.spec, rate, say=lines.append, seconds=60.0, silent_seconds=2.0
    )
    trained = training.trainer(feature_hosts=hosts, report=lines.append, log_dir=str(tmp_path))
    port = one.control.port
    hang_after(other, 8)
    # Then nobody is left, until another host is started in place of the first one.
    die_after(one, 3, then=lambda: threading.Timer(1.0, start_host, (port,)).start())
    trained.train(hosts.shards("train"))
    assert any("goes on with batch" in line for line in lines)
    assert any("has sent nothing for 2 s: its stream is ended" in line for line in lines)
    assert any(line.startswith("waiting for a feature host") for line in lines)
    assert_same(trained, hosts, by_files)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shares = [each["input_wait"] for each in logged if each["split"] == "train"]
    assert len(shares) == training.settings.epochs and all(0 <= share <= 1 for share in shares)
    assert any("waiting for input" in line for line in lines)
    looks = [each for each in logged if each["split"] == "model"]
    assert len(looks) == training.settings.epochs and "embedding_norm_item" in looks[0]


def test_a_silent_socket_is_no_host(hosted, start_host):
    """One that accepts and says nothing is passed over; alone it ends the wait with its address."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        hosts = FeatureHosts(
            [address, start_host().address], hosted.spec, hosted.config.negative_rate,
            silent_seconds=0.3,
        )  # fmt: skip
        assert connections(silent) > 0
        for shard in hosts.shards("train"):
            order = {"batch_size": 16, "shuffle_buffer": 16, "seed": None}
            assert hosts.open(shard, order).host != address
        assert connections(silent) == 0  # not asked again
        with pytest.raises(ClusterError, match=f"no feature host answered .*{address}"):
            FeatureHosts([address], hosted.spec, seconds=0.1, silent_seconds=0.2)


def connections(listener):
    """How many wait to be accepted; they are closed."""
    listener.setblocking(False)
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1
