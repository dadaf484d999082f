"""What a trainer and a feature host refuse, and how they say it."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request

import pytest

from laser_features import FeatureSpec
from tfx_pipeline.cluster.exit_codes import (
    EXIT_NO_FEATURE_HOST,
    EXIT_OTHER_SCHEMA,
    EXIT_PORT_IN_USE,
)
from tfx_pipeline.errors import ClusterError, PipelineError, SettingsError
from tfx_pipeline.feature_host.feature_hosts import FeatureHosts
from tfx_pipeline.feature_host.serve import serve
from tfx_pipeline.settings.section import check
from tfx_pipeline.settings.training_settings import TrainingSettings

RATE = 0.8


def refused(code, match, *arguments, **options):
    with pytest.raises(ClusterError, match=match) as refusal:
        FeatureHosts(*arguments, **options)
    assert refusal.value.exit_code == code


def test_a_host_of_another_schema_is_refused(hosted, start_host):
    other = FeatureSpec.from_dict({**hosted.spec.to_dict(), "history": {"max_length": 11}})
    address = start_host().address
    refused(EXIT_OTHER_SCHEMA, f"{address} sends batches of feature spec", [address], other, RATE)


def test_hosts_of_other_requests_are_refused_before_any_step(hosted, start_host):
    addresses = [start_host().address, start_host(data="of another log").address]
    refused(EXIT_OTHER_SCHEMA, f"{addresses[1]} has other requests", addresses, hosted.spec, RATE)


def test_a_replacement_with_other_requests_is_refused(hosted, start_host):
    first = start_host()
    hosts = FeatureHosts([first.address], hosted.spec, RATE)
    first.control.close()
    start_host(first.control.port, data="of another log")
    with pytest.raises(ClusterError, match="has other requests"):
        hosts.open(hosts.shards("eval")[0], {"batch_size": 4, "shuffle_buffer": 1, "seed": None})


def test_another_share_of_negatives_is_refused(hosted, start_host):
    refused(
        EXIT_OTHER_SCHEMA, "keeps 0.8 of the negatives", [start_host().address], hosted.spec, 1.0
    )


def test_silent_hosts_are_waited_for_and_named(hosted, start_host):
    gone = start_host()
    gone.control.close()
    lines = []
    options = {"say": lines.append, "seconds": 0.1}
    refused(EXIT_NO_FEATURE_HOST, gone.address, [gone.address], hosted.spec, RATE, **options)
    assert lines[0].startswith("waiting for a feature host")
    hosts = FeatureHosts([gone.address, start_host().address], hosted.spec, RATE, **options)
    assert lines[-1] == f"feature host {gone.address} does not answer: going on without it"
    with pytest.raises(ClusterError, match="not 'test'"):
        hosts.shards("test")


def ask(address, path, content=None, method=None):
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"http://{address}{path}", body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_malformed_orders_are_answered_with_what_is_wrong(start_host):
    address = start_host().address
    good = {
        "split": "train", "shard": 0, "batch_size": 8, "shuffle_buffer": 4, "seed": 1, "first": 0,
    }  # fmt: skip
    assert ask(address, "/streams", good)[0] == 200
    for change, words in [
        ({"split": "nights"}, "no split 'nights'; there are train, eval"),
        ({"shard": 99}, "split train has no shard 99"),
        ({"batch_size": 0}, "batch_size is 0; give a whole number of at least 1"),
        ({"seed": True}, "seed is True; give a whole number of at least 0"),
        ({"first": 10**6}, "none is left from batch 1000000 on"),
    ]:
        status, answer = ask(address, "/streams", {**good, **change})
        assert status == 400 and words in answer
    assert ask(address, "/streams", [])[0] == 400
    assert ask(address, "/nothing")[0] == 404
    assert ask(address, "/streams/1", method="DELETE")[0] == 404
    status, text = ask(address, "/metrics")
    assert status == 200 and "laser_feature_host_batches_total" in text


@pytest.mark.parametrize("address", ["host", "host:port", "::1:80", "http://a:1", "a:65536", "a:"])
def test_malformed_addresses_end_nothing_but_the_command(hosted, address):
    with pytest.raises(SettingsError, match="is not an address"):
        check(TrainingSettings, {"feature_hosts": [address]}, "training")
    with pytest.raises(PipelineError, match="is not an address"):
        serve(hosted.config, address)


def test_an_address_in_use_is_named(hosted, start_host):
    with pytest.raises(ClusterError, match="cannot be listened at") as refusal:
        serve(hosted.config, start_host().address, say=lambda line: None)
    assert refusal.value.exit_code == EXIT_PORT_IN_USE


def test_a_caller_who_hangs_up_shows_no_traceback(start_host, capfd, caplog):
    caplog.set_level("INFO")
    started = start_host()
    hung_up = threading.Event()

    def describe():
        hung_up.wait(10)
        time.sleep(0.1)  # the reset is on its way
        return {"text": "x" * 10_000_000}

    started.host.describe = describe
    with socket.create_connection(("127.0.0.1", started.control.port)) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    hung_up.set()
    for _ in range(100):
        if "a caller at 127.0.0.1 hung up" in caplog.text:
            break
        time.sleep(0.05)
    assert "a caller at 127.0.0.1 hung up" in caplog.text
    assert "Traceback" not in capfd.readouterr().err
