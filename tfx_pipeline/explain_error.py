"""Turns an exception into one line for the user."""

from __future__ import annotations

import errno
import os
import tempfile
import traceback
from pathlib import Path

# Errors of these packages are written for people already.
_ROOMS = ("components", "laser_features", "seqvault", "tfx_pipeline")
# Libraries wrap the operating system's error; SQLite has words of its own.
_DISK_IS_FULL = (os.strerror(errno.ENOSPC), "database or disk is full")
_ADVICE = {
    errno.EACCES: "give another folder, or the right to use it",
    errno.EPERM: "give another folder, or the right to use it",
    errno.EROFS: "the file system is read-only: give another folder",
    errno.ENOTDIR: "a file stands where a folder belongs: give another folder",
    errno.EEXIST: "a file stands where a folder belongs: give another folder",
    errno.EISDIR: "a folder stands where a file belongs: give another path",
    errno.ENOENT: "it is not there",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
    errno.EDQUOT: "free some space",
}
_SQLITE = {
    "attempt to write a readonly database": "the metadata of past runs cannot be written",
    "unable to open database file": "the metadata of past runs cannot be opened",
    "database is locked": "the metadata of past runs is in use by another process",
}


def explain(error: BaseException, work: Path | None) -> str:
    """One line about an error; tracebacks of unexpected errors go to a file.

    It never fails itself: if no file can be written, only the line is returned.

    Args:
        error: What was raised.
        work: Folder for the traceback; the system's temporary folder if that cannot be written.
    """
    if type(error).__module__.split(".")[0] in _ROOMS:
        return str(error)
    text = str(error)
    if any(words in text for words in _DISK_IS_FULL):
        where = getattr(error, "filename", None) or "while writing"
        return f"the disk is full ({where}): free some space"
    if isinstance(error, OSError) and error.errno in _ADVICE and error.filename:
        return f"{error.filename}: {error.strerror}; {_ADVICE[error.errno]}"
    for words, meaning in _SQLITE.items():
        if words in text:
            return f"{meaning} ({words}); give another --work, or the right to write there"
    first_line = next(iter(text.splitlines()), "")
    line = f"{type(error).__name__}: {first_line}"
    path = _write_traceback(error, work)
    return f"{line} (the traceback is in {path})" if path else line


def _write_traceback(error: BaseException, work: Path | None) -> Path | None:
    for folder in (work or Path("."), Path(tempfile.gettempdir())):
        path = folder / "error.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        except OSError:
            continue
        return path
    return None
