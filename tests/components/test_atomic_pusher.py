"""Pushing: a version appears whole, under its final name, or not at all."""

import pytest
from google.protobuf import json_format
from tfx.proto import pusher_pb2
from tfx.types import standard_artifacts
from tfx.utils import io_utils

from components import file_systems
from components.atomic_pusher import AtomicPusherExecutor


@pytest.fixture
def push(tmp_path):
    """Push a small model; returns (served folder, PushedModel artifact)."""
    model = standard_artifacts.Model()
    model.uri = str(tmp_path / "model")
    saved = tmp_path / "model" / "Format-Serving"
    (saved / "variables").mkdir(parents=True)
    (saved / "saved_model.pb").write_bytes(b"graph")
    (saved / "variables" / "data").write_bytes(b"weights")
    served = tmp_path / "serving" / "laser"
    destination = pusher_pb2.PushDestination(
        filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(served))
    )

    def run(blessed=1, warm_up=None, uri=""):
        if uri:
            destination.filesystem.base_directory = uri
        blessing = standard_artifacts.ModelBlessing()
        blessing.uri = str(tmp_path / "blessing")
        blessing.set_int_custom_property("blessed", blessed)
        pushed = standard_artifacts.PushedModel()
        pushed.uri = str(tmp_path / "pushed")
        properties = {"push_destination": json_format.MessageToJson(destination)}
        inputs = {"model": [model], "model_blessing": [blessing]}
        if warm_up is not None:
            checked = standard_artifacts.InfraBlessing()
            checked.uri = str(tmp_path / "checked")
            checked.set_int_custom_property("blessed", 1)
            file = tmp_path / "checked" / "assets.extra" / "tf_serving_warmup_requests"
            file.parent.mkdir(parents=True)
            if warm_up:
                file.write_bytes(warm_up)
            inputs["infra_blessing"] = [checked]
        AtomicPusherExecutor().Do(inputs, {"pushed_model": [pushed]}, properties)
        return served, pushed

    return run


def test_a_blessed_model_appears_under_its_version(push):
    served, pushed = push()
    (version,) = served.iterdir()
    assert int(version.name) > 1_700_000_000
    assert (version / "saved_model.pb").read_bytes() == b"graph"
    assert (version / "variables" / "data").read_bytes() == b"weights"
    assert pushed.get_string_custom_property("pushed_destination") == str(version)
    assert [path.name for path in served.parent.iterdir()] == ["laser"]


def test_warm_up_requests_are_pushed_with_the_model(push):
    served, _ = push(warm_up=b"requests")
    (version,) = served.iterdir()
    file = version / "assets.extra" / "tf_serving_warmup_requests"
    assert file.read_bytes() == b"requests"


def test_a_model_is_pushed_to_a_uri(push, tmp_path):
    uri = f"file://{tmp_path / 'bucket' / 'laser'}"
    served, pushed = push(warm_up=b"requests", uri=uri)
    assert not served.exists()
    (version,) = (tmp_path / "bucket" / "laser").iterdir()
    assert pushed.get_string_custom_property("pushed_destination") == f"{uri}/{version.name}"
    assert (version / "saved_model.pb").read_bytes() == b"graph"
    assert (version / "variables" / "data").read_bytes() == b"weights"
    file = version / "assets.extra" / "tf_serving_warmup_requests"
    assert file.read_bytes() == b"requests"


def test_a_push_to_a_uri_that_fails_leaves_no_version(push, tmp_path, monkeypatch):
    opened = file_systems.open_file_system

    def full(where):
        target, root = opened(where)
        return FailsAtTheGraph(target), root

    monkeypatch.setattr(file_systems, "open_file_system", full)
    with pytest.raises(file_systems.LocationError, match=r"cannot be written .*no room"):
        push(uri=f"file://{tmp_path / 'bucket' / 'laser'}")
    assert list((tmp_path / "bucket" / "laser").iterdir()) == []


class FailsAtTheGraph:
    """A file system that takes everything but ``saved_model.pb``."""

    def __init__(self, target):
        self._target = target

    def open_output_stream(self, name):
        if name.endswith("saved_model.pb"):
            raise OSError(28, "no room")
        return self._target.open_output_stream(name)

    def __getattr__(self, name):
        return getattr(self._target, name)


def test_a_check_without_warm_up_requests(push):
    served, _ = push(warm_up=b"")
    (version,) = served.iterdir()
    assert (version / "saved_model.pb").exists()


def test_a_model_that_is_not_blessed_is_not_pushed(push):
    served, pushed = push(blessed=0)
    assert not served.exists()
    assert pushed.get_int_custom_property("pushed") == 0


def test_an_interrupted_push_leaves_no_version(push, monkeypatch, tmp_path):
    copy_file = io_utils.copy_file

    def fail_at_the_graph(source, *arguments, **named):
        if source.endswith("saved_model.pb"):
            raise KeyboardInterrupt
        return copy_file(source, *arguments, **named)

    monkeypatch.setattr(io_utils, "copy_file", fail_at_the_graph)
    with pytest.raises(KeyboardInterrupt):
        push()
    assert list((tmp_path / "serving").iterdir()) == []
