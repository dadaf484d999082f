"""Whatever went wrong is one line, and saying so never fails."""

from __future__ import annotations

import errno
import os

import pytest

from tfx_pipeline.errors import PipelineError
from tfx_pipeline.explain_error import explain


def os_error(number, path="/work/x"):
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PipelineError("no model was pushed"), "no model was pushed"),
        (os_error(errno.ENOSPC), "the disk is full (/work/x): free some space"),
        (RuntimeError("IO: No space left on device [Op:Save]"), "the disk is full"),
        (os_error(errno.EROFS), "/work/x: Read-only file system; the file system is read-only"),
        (os_error(errno.EACCES), "/work/x: Permission denied; give another folder"),
        (os_error(errno.ENOTDIR), "a file stands where a folder belongs"),
        (os_error(errno.EEXIST), "a file stands where a folder belongs"),
        (os_error(errno.EMFILE), "raise the limit"),
        (RuntimeError("attempt to write a readonly database"), "cannot be written"),
        (RuntimeError("unable to open database file"), "cannot be opened"),
    ],
)
def test_known_errors_need_no_traceback(error, expected, tmp_path):
    line = explain(error, tmp_path)
    assert expected in line and "\n" not in line
    assert not list(tmp_path.iterdir())


def test_what_nobody_expected_leaves_a_traceback(tmp_path):
    line = explain(ZeroDivisionError("division\nby zero"), tmp_path / "work")
    assert line.startswith("ZeroDivisionError: division (the traceback is in")
    assert "by zero" in (tmp_path / "work" / "error.log").read_text()


def test_a_work_folder_that_is_a_file_does_not_hide_the_error(tmp_path, monkeypatch):
    (tmp_path / "work").write_text("")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    line = explain(ZeroDivisionError("oh"), tmp_path / "work")
    assert f"the traceback is in {tmp_path / 'temporary'}" in line
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "work"))
    assert explain(ZeroDivisionError("oh"), tmp_path / "work") == "ZeroDivisionError: oh"
