"""Connections to feature hosts that bring nothing are ended; no others are."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

import pytest

from tfx_pipeline.feature_host import silent_streams
from tfx_pipeline.feature_host.silent_streams import FEATURE_HOSTS, SilentStreams, watch_as_worker

SECONDS = 1.0  # what was just sent is younger, on a loaded machine too


@pytest.fixture
def connect():
    """Makes connections to ports that accept and send what they are told, with the other end."""
    with ExitStack() as stack:

        def connect(content=b"", host="127.0.0.1"):
            listener = stack.enter_context(socket.create_server((host, 0)))
            reader = stack.enter_context(socket.create_connection(listener.getsockname()))
            sender = stack.enter_context(listener.accept()[0])
            sender.sendall(content)
            return reader, sender, listener.getsockname()[1]

        yield connect


def is_ended(reader):
    """Whether its end has come, behind what was sent."""
    reader.settimeout(0.0)
    try:
        while reader.recv(100):
            pass
    except BlockingIOError:
        return False
    return True


def unix_listener(folder):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen()
    return listener


def test_a_reader_of_a_silent_host_finds_its_stream_ended(connect, tmp_path):
    said = []
    silent, _, port = connect(b"half a batch")
    assert silent.recv(100) == b"half a batch"
    unread, _, _ = connect(b"waits for its reader")
    control, _, control_port = connect()
    elsewhere, _, _ = connect(host="127.0.0.2")
    talking, sender, _ = connect()
    others = [
        *socket.socketpair(),
        socket.socket(socket.AF_INET6),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        unix_listener(tmp_path),
    ]
    time.sleep(1.5 * SECONDS)
    sender.sendall(b"just now")
    talking.recv(100)
    SilentStreams([f"127.0.0.1:{control_port}"], SECONDS, said.append).end_silent()
    assert is_ended(silent)
    assert not any(map(is_ended, (unread, control, elsewhere, talking)))
    assert f"feature host 127.0.0.1:{port} has sent nothing for 1 s" in "\n".join(said)
    for each in others:
        each.close()


def test_a_worker_watches_the_hosts_that_its_environment_names(connect, monkeypatch, capsys):
    monkeypatch.setattr(silent_streams, "SILENT_SECONDS", SECONDS)
    reader, _, _ = connect()
    monkeypatch.delenv(FEATURE_HOSTS, raising=False)
    assert watch_as_worker() is None
    monkeypatch.setenv(FEATURE_HOSTS, "127.0.0.1:1,127.0.0.1:2")
    watch = watch_as_worker()
    reader.settimeout(10.0)
    assert reader.recv(1) == b""  # waits for ever without
    watch.stop()
    assert "has sent nothing" in capsys.readouterr().out
