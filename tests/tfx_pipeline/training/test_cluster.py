"""A local cluster of separate processes learns what one process learns."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf

from laser_features import FeatureSpec
from laser_keras import SYSTEMS
from tfx_pipeline.cluster.exit_codes import EXIT_WORKERS_LOST
from tfx_pipeline.errors import ClusterError
from tfx_pipeline.settings.section import plain
from tfx_pipeline.settings.training_settings import OpenTableSettings
from tfx_pipeline.training import check_cluster as check_cluster_module
from tfx_pipeline.training.check_cluster import answers, check_cluster
from tfx_pipeline.training.checkpoint import Checkpoints, Position
from tfx_pipeline.training.cluster import EXIT_SERVER_LOST, Cluster
from tfx_pipeline.training.lost_workers import end_when_workers_are_lost
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer

SCRIPT = Path(__file__).parent / "chief.py"
ROOT = Path(__file__).parents[3]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(arguments, task=None, addresses=None, variables=None, **streams):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
        **(variables or {}),
    }
    environment.pop("TF_CONFIG", None)
    if task is not None:
        task_config = {"type": task[0], "index": task[1]}
        environment["TF_CONFIG"] = json.dumps({"cluster": addresses, "task": task_config})
    return subprocess.Popen([sys.executable, *arguments], env=environment, text=True, **streams)


def start_chief(spec, model_settings, settings, folder, files, addresses, warm_start=None):
    arguments = [
        str(SCRIPT),
        json.dumps(spec.to_dict()),
        json.dumps(plain(model_settings)),
        json.dumps(plain(settings)),
        str(folder / "checkpoints"),
        str(folder / "many.npz"),
        *files,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    variables = {"WARM_START": warm_start} if warm_start else None
    return start(arguments, ("chief", 0), addresses, variables, **pipes)


@pytest.fixture
def cluster():
    """Two parameter servers and a worker, as documented; yields addresses and processes."""
    ports = [f"localhost:{port}" for port in free_ports(3)]
    addresses = {"ps": ports[:2], "worker": ports[2:]}
    servers = {
        task: start(["-m", "tfx_pipeline.training.cluster"], task, addresses)
        for task in (("ps", 0), ("ps", 1), ("worker", 0))
    }
    yield addresses, servers
    for server in servers.values():
        server.kill()
        server.wait()


def test_cluster_learns_what_one_process_learns_and_ends_when_a_server_is_lost(
    cluster, open_spec, laser_settings, settings, write_files, tmp_path
):
    """So do its open tables, tables with more rows than before, and one over a damaged file."""
    settings = replace(
        settings, open_tables={"tag": OpenTableSettings(sightings=2)}, max_damaged_files=1
    )
    begins_with = str(tmp_path / "before")
    smaller = Trainer(open_spec, laser_settings, settings, RowLookup())
    leave_trained_tables(smaller.state, begins_with)
    content = open_spec.to_dict()
    content["tables"]["tag"]["rows"] = 20
    spec = FeatureSpec.from_dict(content)
    files = write_files(tmp_path, spec, files=4, requests=40)
    whole = Path(files[1]).read_bytes()
    Path(files[1]).write_bytes(whole[: len(whole) // 2])
    addresses, servers = cluster
    chief = start_chief(spec, laser_settings, settings, tmp_path, files, addresses, begins_with)
    try:
        alone = Trainer(
            spec, laser_settings, settings, RowLookup(),
            warm_start=begins_with, log_dir=str(tmp_path / "alone"),
        )  # fmt: skip
        alone.train(files)
        assert any(line == "written\n" for line in chief.stdout), chief.stderr.read()
        many, one = np.load(tmp_path / "many.npz"), alone.numpy_state()
        assert sorted(many) == sorted(one)
        for name in one:
            np.testing.assert_allclose(many[name], one[name], atol=1e-6, rtol=1e-6, err_msg=name)
        ids = one["open_ids_tag"].tolist()
        assert ids[0] == -5 and 11 < ids[18] < 20  # one of before, then those that training met
        assert (tmp_path / "many.npz.saved_model" / "saved_model.pb").is_file()
        first = logged(tmp_path / "logs", "train")
        moved = [first[f"{way}_bytes_per_step_none"] for way in ("received", "sent")]
        assert moved[0] > moved[1] > 0  # row 0 is read and not trained
        seen, expected = (logged(tmp_path / where, "model") for where in ("logs", "alone"))
        assert "gate_silent_segments" in seen and "embedding_norm_tag" in seen
        assert seen == pytest.approx({**expected, "time": seen["time"]}, abs=1e-5)

        servers[("ps", 1)].kill()
        _, errors = chief.communicate(timeout=60)
        assert chief.returncode == EXIT_SERVER_LOST
        assert "Traceback" not in errors and errors.count("server was lost") == 1, errors
        line = errors.strip().splitlines()[-1]
        assert "a parameter server was lost" in line and "goes on from the last checkpoint" in line
    finally:
        chief.kill()


def leave_trained_tables(state, folder):
    """A checkpoint whose tables hold what no initialiser gives, and an open one an id."""
    for table in state.tables.values():
        table.values.assign(table.values * 2.0)
        table.accumulators.assign(table.accumulators * 3.0)
    ids = tf.constant([-5], tf.int64)
    for _ in range(2):
        state.open_rows["tag"].note(ids, state.open_rows["tag"].lookup(ids), tf.constant(19675))
    assert state.open_rows["tag"].refresh().admitted == 1
    Checkpoints(folder, state).save(Position(1))


def logged(folder, split):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return next(each for each in map(json.loads, lines) if each["split"] == split)


SHORT = {  # encoders whose defaults ask for longer histories
    "laser": {"segment_size": 5, "num_recent_segments": 2},
    "laser_fast": {"segment_size": 5, "num_recent_segments": 2},
    "laser_printed": {"segment_size": 5, "num_recent_segments": 2},
    "longer": {"num_queries": 3, "num_layers": 1},
    "sim_hard": {"top_k": 4},
    "sim_soft": {"top_k": 4},
    "twin": {"top_k": 4},
}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_learns_in_a_cluster_what_one_process_learns(
    cluster, plain_spec, laser_settings, settings, write_files, tmp_path, system
):
    spec = FeatureSpec.from_dict({**plain_spec.to_dict(), "interactions": {"category": "tag"}})
    model = replace(laser_settings, system=system, encoder=SHORT.get(system, {}))
    files = write_files(tmp_path, spec, files=2, requests=40)
    chief = start_chief(spec, model, settings, tmp_path, files, cluster[0])
    try:
        alone = Trainer(spec, model, settings, RowLookup())
        alone.train(files)
        assert any(line == "written\n" for line in chief.stdout), chief.stderr.read()
    finally:
        chief.kill()
        chief.wait()
    many, one = np.load(tmp_path / "many.npz"), alone.numpy_state()
    assert sorted(many) == sorted(one)
    for name in one:
        np.testing.assert_allclose(many[name], one[name], atol=1e-6, rtol=1e-6, err_msg=name)


@pytest.mark.long
def test_codecs_of_zstd_change_no_bit_over_a_cluster(ops, cluster, tmp_path):
    addresses, _ = cluster
    codecs = str(Path(__file__).parent / "codecs.py")
    chief = start([codecs, str(tmp_path / "codecs.npz")], ("chief", 0), addresses)
    try:
        assert chief.wait(timeout=120) == 0
    finally:
        chief.kill()
    written = np.load(tmp_path / "codecs.npz")
    for what in ("read", "values", "accumulators"):
        for plain_codec, packed in (("none", "zstd"), ("bf16", "bf16+zstd")):
            expected, found = written[f"{what}_{plain_codec}"], written[f"{what}_{packed}"]
            assert expected.tobytes() == found.tobytes(), (what, packed)
        assert written[f"{what}_none"].tobytes() != written[f"{what}_bf16"].tobytes()
    assert "another number of bytes" in str(written["damaged"])


@pytest.mark.long
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_the_chief_ends_when_all_workers_are_lost(
    cluster, plain_spec, model_settings, settings, write_files, tmp_path, end
):
    files = write_files(tmp_path, plain_spec, files=1, requests=20)
    addresses, servers = cluster
    chief = start_chief(plain_spec, model_settings, settings, tmp_path, files, addresses)
    try:
        assert any(line == "written\n" for line in chief.stdout), chief.stderr.read()
        servers[("worker", 0)].send_signal(end)
        said, errors = chief.communicate(timeout=120)
        if chief.returncode == 1:
            assert end == signal.SIGSTOP  # it hung while a function was registered
            assert "\nTimeout (0:01:00)!" in f"\n{errors}", errors
            return
        assert chief.returncode == EXIT_WORKERS_LOST, errors
        assert "all workers are lost: waiting 20 s for one to come back" in said
        assert "Traceback" not in errors
        assert "none of the 1 workers" in errors.strip().splitlines()[-1]
    finally:
        chief.kill()


@contextmanager
def grpc_server(port=0):
    """A living server, as a worker of TensorFlow is one; gives its port."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port(f"localhost:{port}")
    server.start()
    yield port
    server.stop(None).wait()


def test_a_process_that_hangs_gives_no_answer(monkeypatch):
    monkeypatch.setattr(check_cluster_module, "_CONNECT_SECONDS", 0.2)
    with socket.create_server(("localhost", 0)) as hanging:  # the kernel takes connections for it
        assert not answers(f"localhost:{hanging.getsockname()[1]}")
    with grpc_server() as port:
        assert answers(f"localhost:{port}")


def test_a_chief_waits_for_workers_with_a_bound():
    said = []
    gone = f"localhost:{free_ports(1)[0]}"
    with grpc_server() as port:
        address = f"localhost:{port}"
        with end_when_workers_are_lost(
            Cluster({"ps": [gone], "worker": [gone, address]}, "chief", 0), said.append, 0, 0.01
        ):
            time.sleep(0.2)
    assert said == []  # one of them is there
    with pytest.raises(ClusterError, match=r"none of the 1 workers .* last checkpoint") as found:
        lost = Cluster({"ps": [gone], "worker": [gone]}, "chief", 0)
        with end_when_workers_are_lost(lost, said.append, 0.1, 0.01):
            threading.Event().wait(30)  # as TensorFlow's coordinator waits
    assert found.value.exit_code == EXIT_WORKERS_LOST
    assert said == ["all workers are lost: waiting 0 s for one to come back"]


def test_a_worker_that_comes_back_ends_the_wait():
    said = []
    port = free_ports(1)[0]
    cluster = Cluster({"ps": ["localhost:1"], "worker": [f"localhost:{port}"]}, "chief", 0)
    with end_when_workers_are_lost(cluster, said.append, 30, 0.01):
        while not said:
            time.sleep(0.01)
        with grpc_server(port):
            while len(said) < 2:
                time.sleep(0.01)
    assert said[1] == "a worker is back: training goes on"


def test_tf_config_is_checked():
    def read(config):
        return Cluster.from_environment({"TF_CONFIG": json.dumps(config)})

    hosts = {"ps": ["a:1"], "worker": ["b:1"]}
    cluster = read({"cluster": hosts, "task": {"type": "chief", "index": 0}})
    assert cluster is not None and cluster.parameter_servers == 1
    assert read({"cluster": {"worker": ["b:1"]}}) is None
    with pytest.raises(ValueError, match="no worker"):
        read({"cluster": {"ps": ["a:1"]}, "task": {"type": "chief", "index": 0}})
    with pytest.raises(ValueError, match="worker:3"):
        read({"cluster": hosts, "task": {"type": "worker", "index": 3}})
    with pytest.raises(ValueError, match="expected JSON"):
        Cluster.from_environment({"TF_CONFIG": "{"})
    worker = read({"cluster": hosts, "task": {"type": "worker", "index": 0}})
    with pytest.raises(ClusterError, match="only the chief"):
        worker.connect()
    for bad in ("a:1", ["a"], ["a:x"], [":1"], ["a:70000"], [1]):
        with pytest.raises(ClusterError, match=r'ps is .* expected a list of "host:port"'):
            read({"cluster": {**hosts, "ps": bad}})


def test_a_cluster_is_checked_before_any_work(plain_spec):
    with grpc_server() as port:
        up, down = (f"localhost:{each}" for each in (port, free_ports(1)[0]))
        said = []
        check_cluster(None, plain_spec)
        check_cluster(Cluster({"ps": [up], "worker": [up]}, "chief", 0), plain_spec, said.append)
        assert said == []
        with pytest.raises(ClusterError, match=rf"no answer within 0 s from worker:1 \({down}\)"):
            half = Cluster({"ps": [up], "worker": [up, down]}, "chief", 0)
            check_cluster(half, plain_spec, said.append, seconds=0.1)
        assert said == [f"waiting for worker:1 ({down})"]
        with pytest.raises(ClusterError, match=r"has .* rows, which cannot be split over 6"):
            check_cluster(Cluster({"ps": [up] * 6, "worker": [up]}, "chief", 0), plain_spec)
        with pytest.raises(ClusterError, match="only the chief runs the trainer"):
            check_cluster(Cluster({"ps": [up], "worker": [up]}, "worker", 0), plain_spec)


END = """
import sys, threading, time, types
training = types.ModuleType("tfx_pipeline.training.cluster")
training.is_chief = lambda: True
sys.modules["tfx_pipeline.training.cluster"] = training
from tfx_pipeline import cli
cli.main = lambda arguments: (print("pushed to ..."), 75)[1]
threading.Thread(target=time.sleep, args=(1000,)).start()  # as if a worker never came back
cli.run_and_exit()
"""


def test_the_chief_ends_though_a_worker_never_comes_back():
    chief = start(["-c", END], stdout=subprocess.PIPE)
    said, _ = chief.communicate(timeout=60)
    assert (said, chief.returncode) == ("pushed to ...\n", 75)
