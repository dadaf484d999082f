"""One run at a time on a work folder, and folders that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tfx_pipeline.errors import PipelineError
from tfx_pipeline.runners.work_lock import holder, is_locked, locked

HOLD = """
import sys
from pathlib import Path
from tfx_pipeline.runners.work_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "work")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_told_who_holds_the_folder(other, tmp_path):
    work = tmp_path / "work"
    assert is_locked(work)
    with (
        pytest.raises(PipelineError, match=f"in use by process {other.pid} on .* since"),
        locked(work),
    ):
        raise AssertionError("entered a folder that is held")
    assert str(other.pid) in holder(work)


def test_the_lock_ends_with_its_holder_however_that_ends(other, tmp_path):
    other.kill()
    other.wait()
    assert not is_locked(tmp_path / "work")
    with locked(tmp_path / "work"):
        assert f"process {os.getpid()} on" in holder(tmp_path / "work")
    with locked(tmp_path / "work"):
        pass


def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "work").write_text("")
    for path in (tmp_path / "work", tmp_path / "work" / "below"):
        with pytest.raises(PipelineError, match="is a file, or lies below one"), locked(path):
            pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    refused = pytest.raises(PipelineError, match=r"cannot be written \(Permission denied\)")
    with refused, locked(tmp_path / "work"):
        pass


def test_nobody_holds_a_folder_that_is_not_there(tmp_path):
    assert not is_locked(tmp_path / "none")
    assert holder(tmp_path / "none") == "another process"
