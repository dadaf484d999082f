"""Batches from feature hosts are those from files of Examples, byte for byte."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import tensorflow as tf

from tfx_pipeline.feature_host.feature_hosts import FeatureHosts
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.example_files import batches_of_file
from tfx_pipeline.training.feature_streams import batches_of_stream

RATE = 0.8
LABELS = ("click", ["seconds"])
SETTINGS = TrainingSettings(batch_size=32, shuffle_buffer=50)


class Reader:
    """Reads batches in graphs that are traced once; ``seen`` holds what came before an error."""

    def __init__(self, spec, fixed=False, settings=SETTINGS):
        label, more = LABELS
        self.seen = []
        scalar = tf.TensorSpec([], tf.int64)

        def file(path, seed, is_shuffled):
            given = seed if is_shuffled else None
            self._read(batches_of_file(path, spec, settings, label, given, fixed, more))

        def stream(endpoint, number, first, reached):
            self._read(
                batches_of_stream(endpoint, number, first, reached, spec, label, fixed, more)
            )

        self._file = tf.function(file)
        self._stream = tf.function(
            stream, input_signature=[tf.TensorSpec([], tf.string), scalar, scalar, scalar]
        )

    def file(self, path, seed):
        self.seen = []
        self._file(tf.constant(path), tf.constant(seed or 0, tf.int64), seed is not None)
        return self.seen

    def stream(self, stream, reached=0, endpoint=None):
        self.seen = []
        numbers = (stream.number, stream.first, reached)
        where = tf.constant(endpoint or stream.endpoint)
        self._stream(where, *(tf.constant(each, tf.int64) for each in numbers))
        return self.seen

    def _read(self, batches):
        names = sorted(batches.element_spec)

        def keep(*values):
            self.seen.append(
                {
                    name: (str(value.dtype), value.shape, value.numpy().tobytes())
                    for name, value in zip(names, values, strict=True)
                }
            )

        for batch in iter(batches):
            tf.py_function(keep, [batch[name] for name in names], [])


@pytest.fixture(scope="module")
def reader(hosted):
    return Reader(hosted.spec)


def order(seed):
    return {
        "batch_size": SETTINGS.batch_size,
        "shuffle_buffer": SETTINGS.shuffle_buffer,
        "seed": seed,
    }


@pytest.mark.parametrize(("fixed", "seed"), [(False, 7), (True, None)])
def test_streams_give_the_batches_of_files(hosted, examples, start_host, fixed, seed):
    reader = Reader(hosted.spec, fixed)
    hosts = FeatureHosts([start_host().address], hosted.spec, RATE)
    for split, files in examples.items():
        shards = hosts.shards(split)
        assert len(shards) == len(files) > 1
        for shard, path in zip(shards, files, strict=True):
            stream = hosts.open(shard, order(seed))
            batches = reader.stream(stream)
            assert len(batches) == stream.batches
            assert batches == reader.file(path, seed)


def test_any_host_goes_on_where_another_one_stopped(hosted, examples, start_host, reader):
    one, other = start_host(), start_host()
    hosts = FeatureHosts([one.address, other.address], hosted.spec, RATE)
    shard = hosts.shards("train")[0]
    expected = reader.file(examples["train"][0], 3)
    whole = hosts.open(shard, order(3))
    assert reader.stream(whole) == expected
    assert reader.stream(whole, reached=2) == expected[2:]  # the same port once more
    rest = hosts.open(shard, order(3), first=3)
    assert rest.host != whole.host
    assert reader.stream(rest) == expected[3:]
    hosts.close(rest)
    assert hosts.is_open(whole) and not hosts.is_open(rest)


@contextmanager
def cut_off(content):
    """Sends everybody who connects the same bytes; the reader connects again after an error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(content)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_stream_that_breaks_anywhere_is_an_error(hosted, start_host, reader):
    """The native reader takes half a batch for a whole one: its seal shows that it is not."""
    hosts = FeatureHosts([start_host().address], hosted.spec, RATE)
    stream = hosts.open(hosts.shards("train")[0], order(3))
    host, port = stream.endpoint.split(":")
    content = b""
    with socket.create_connection((host, int(port))) as connection:
        while part := connection.recv(1 << 16):
            content += part
    expected = reader.stream(stream)
    rng = np.random.default_rng(1)
    for cut in [*rng.integers(1, len(content), 24).tolist(), len(content) - 8]:
        with cut_off(content[:cut]) as endpoint:
            with pytest.raises((tf.errors.InternalError, tf.errors.InvalidArgumentError)):
                reader.stream(stream, endpoint=endpoint)
            assert reader.seen == expected[: len(reader.seen)]


def test_a_stream_of_another_number_is_refused(hosted, start_host, reader):
    hosts = FeatureHosts([start_host().address], hosted.spec, RATE)
    stream = hosts.open(hosts.shards("train")[0], order(3))
    other = hosts.open(hosts.shards("train")[1], order(3))
    with pytest.raises(tf.errors.InvalidArgumentError, match="broken feature stream"):
        reader.stream(stream, endpoint=other.endpoint)
