"""Descriptions of a cluster, its ports, and what restarts whom."""

import re
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from tfx_pipeline.cluster.exit_codes import EXIT_BAD_CLUSTER, EXIT_PORT_IN_USE
from tfx_pipeline.cluster.local_cluster import LocalCluster, check_free
from tfx_pipeline.cluster.restart_policy import (
    EXIT_SERVER_LOST,
    Action,
    RestartBudget,
    action_after,
)
from tfx_pipeline.errors import ClusterError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("local:ps=2", "no workers"),
        ("local:workers=2", "no parameter servers"),
        ("local:ps=0,workers=1", "ps is '0'"),
        ("local:ps=1,workers=two", "'two'"),
        ("local:ps=1,ps=2,workers=1", "twice"),
        ("local:ps=1,workers=1,gpus=2", "no part 'gpus'"),
        ("local:ps=1,workers=-1", "'-1'"),
        ("local:ps=1,workers=1,port=65535", "beyond 65535"),
        ("k8s:ps=1,workers=1", "begin with `local:`"),
        ("local", "begin with `local:`"),
    ],
)
def test_a_wrong_description_is_refused_with_the_right_form(text, words):
    with pytest.raises(ClusterError) as raised:
        LocalCluster.parse(text)
    assert words in str(raised.value) and "local:ps=2,workers=2" in str(raised.value)
    assert raised.value.exit_code == EXIT_BAD_CLUSTER


def test_every_task_has_a_port_of_its_own_that_no_connection_gets():
    addresses = LocalCluster.parse("local:ps=2,workers=3").addresses()
    assert [len(addresses[job]) for job in ("chief", "ps", "worker")] == [1, 2, 3]
    ports = [int(host.split(":")[1]) for hosts in addresses.values() for host in hosts]
    assert len(set(ports)) == 6 and max(ports) < 32768


@pytest.mark.parametrize("host", ["localhost", ""])
def test_a_port_in_use_is_named(host):
    with socket.socket() as listener:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ClusterError, match=f"port {port} is in use") as raised:
            check_free([port])
        assert raised.value.exit_code == EXIT_PORT_IN_USE
        with pytest.raises(ClusterError, match=f"port {port} is in use"):
            LocalCluster.parse(f"local:ps=1,workers=1,port={port - 1}").addresses()
    check_free([port])


def test_what_follows_from_the_end_of_a_role():
    assert action_after("chief", 0) is Action.DONE
    assert action_after("chief", 1) is Action.FAIL
    assert action_after("chief", -9) is Action.RESTART_ALL_BUT_WORKERS
    assert action_after("chief", EXIT_SERVER_LOST) is Action.RESTART_ALL_BUT_WORKERS
    assert action_after("ps", -11) is Action.RESTART_ALL_BUT_WORKERS
    assert action_after("ps", 0) is Action.RESTART_ALL_BUT_WORKERS
    assert action_after("worker", 1) is Action.RESTART_ROLE
    assert action_after("worker", EXIT_PORT_IN_USE) is Action.FAIL


def test_a_role_is_given_up_when_it_dies_too_often_and_forgiven_with_time():
    budget = RestartBudget(limit=3)
    assert [budget.pause("ps:0", now) for now in (0.0, 1.0, 2.0, 3.0)] == [0.0, 1.0, 2.0, None]
    assert budget.pause("worker:0", 3.0) == 0.0
    assert budget.pause("ps:0", 1000.0) == 0.0


def test_server_lost_means_the_same_everywhere():
    source = Path(find_spec("tfx_pipeline.training.cluster").origin).read_text()
    assert re.search(r"^EXIT_SERVER_LOST = (\d+)$", source, re.M)[1] == str(EXIT_SERVER_LOST)
