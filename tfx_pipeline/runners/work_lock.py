"""One run at a time on a work folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tfx_pipeline.errors import PipelineError

_NAME = ".lock"


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
    """Hold the work folder, made if it is missing, until the block ends.

    The lock is the system's: it ends with the process that holds it, however that ends.

    Raises:
        PipelineError: Another run holds it, or the folder cannot be written.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        file = (work / _NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise PipelineError(_unusable(work, error)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PipelineError(
                f"{work} is in use by {holder(work)}: wait until it ends, or give another --work"
            ) from error
        try:
            file.truncate(0)
            mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            file.write(json.dumps(mine))
            file.flush()
        except OSError as error:
            raise PipelineError(_unusable(work, error)) from error
        yield


def is_locked(work: Path) -> bool:
    """Whether a run is going on there."""
    try:
        with (work / _NAME).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def holder(work: Path) -> str:
    """Who holds the folder, for people."""
    try:
        mine = json.loads((work / _NAME).read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(mine["since"]))
        return f"process {mine['pid']} on {mine['host']}, since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _unusable(work: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk is full ({work}): free some space"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{work} is a file, or lies below one: give a folder as --work"
    return f"{work} cannot be written ({error.strerror}): give another folder as --work"
