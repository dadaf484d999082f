"""Files of Examples that are cut short: named, counted, left out up to a bound."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tensorflow as tf

from tfx_pipeline.cluster.exit_codes import EXIT_DAMAGED_EXAMPLES
from tfx_pipeline.training.file_runs import DamagedExamplesError, FileRuns
from tfx_pipeline.training.run_here import RunHere


class Coordinator:
    """Runs a closure when it is waited for; one that fails cancels all that were given out."""

    def __init__(self):
        self.given, self.error = [], None

    def schedule(self, closure, args):
        self._raise()
        self.given.append(Given(self, closure, args))
        return self.given[-1]

    def join(self):
        for each in self.given:
            each.finish()
        self.given = []
        self._raise()

    def _raise(self):
        error, self.error = self.error, None
        if error is not None:
            raise error


class Given:
    def __init__(self, coordinator, closure, args):
        self._coordinator, self._run = coordinator, RunHere(closure, *args)
        self._ended = self._cancelled = False

    def finish(self):
        if self._ended:
            return
        self._ended = True
        if self._coordinator.error is not None:
            self._cancelled = True
            return
        try:
            self._run.get()
        except tf.errors.OpError as error:
            self._coordinator.error = error

    def get(self):
        self.finish()
        if self._cancelled:
            raise tf.errors.CancelledError(None, None, "cancelled")
        self._run.get()


@pytest.fixture
def files(tmp_path):
    """Ten records each; the second and the fourth lose their end."""
    paths = []
    for number in range(6):
        paths.append(str(tmp_path / f"data-{number}.gz"))
        with tf.io.TFRecordWriter(paths[-1], tf.io.TFRecordOptions("GZIP")) as writer:
            for _ in range(10):
                writer.write(os.urandom(200))
    for number in (1, 3):
        path = Path(paths[number])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return paths


@pytest.fixture
def read():
    """A closure that counts the records of whole files, and lists the files that it began."""
    begun, whole = [], tf.Variable(0)

    @tf.function
    def count(path):
        number = 0
        for _ in tf.data.TFRecordDataset(path, "GZIP"):
            number += 1
        whole.assign_add(number)

    def closure(path):
        begun.append(path.numpy().decode())
        count(path)

    closure.begun, closure.whole = begun, whole
    return closure


@pytest.mark.parametrize(("distributed", "ahead"), [(False, 1), (True, 1), (True, 4)])
def test_the_others_are_read_whole_and_each_damaged_one_is_named_once(
    files, read, distributed, ahead
):
    lines: list[str] = []
    runs = FileRuns(Coordinator() if distributed else None, ahead, 2, lines.append)
    for count in (1, 2):  # two epochs
        for path in files:
            runs.run(read, path)
        runs.join()
        assert read.whole.numpy() == 40 * count
    assert set(read.begun) == set(files) and len(read.begun) == 12
    assert len(lines) == 2
    for number, path in enumerate([files[1], files[3]], start=1):
        line = lines[number - 1]
        assert line.startswith(f"file {path} is damaged (truncated record at ")
        assert line.endswith(f"damaged files: {number} of at most 2")


@pytest.mark.parametrize("distributed", [False, True])
def test_one_more_than_may_be_ends_the_run_with_its_name(files, read, distributed):
    runs = FileRuns(Coordinator() if distributed else None, 1, 1, lambda line: None)
    with pytest.raises(
        DamagedExamplesError, match=rf"file {files[3]} is damaged \(.* Examples"
    ) as e:
        for path in files:
            runs.run(read, path)
    assert e.value.exit_code == EXIT_DAMAGED_EXAMPLES == 67


@pytest.mark.parametrize("distributed", [False, True])
def test_another_failure_is_no_damage(files, distributed):
    @tf.function
    def diverge(path):
        tf.debugging.check_numerics(tf.math.log(-1.0), "not finite")

    runs = FileRuns(Coordinator() if distributed else None, 2, 9, lambda line: None)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not finite"):
        for path in files:
            runs.run(diverge, path)
        runs.join()
