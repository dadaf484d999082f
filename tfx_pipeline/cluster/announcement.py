"""What each role of a cluster says about itself, in a folder that all of them see.

TensorFlow's servers tell nothing about the code they run, and a cluster of different versions
trains on in silence. So each role writes one small file before it serves, the chief waits for all
of them, and whoever finds another version refuses to go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import Event, Thread

from tfx_pipeline.cluster.exit_codes import EXIT_MISSING_ROLE, EXIT_OTHER_VERSION
from tfx_pipeline.errors import ClusterError
from tfx_pipeline.fingerprint import code_fingerprint

_RENEW_SECONDS = 10.0
_FRESH_SECONDS = 3 * _RENEW_SECONDS
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Announcement:
    """What one role says.

    Attributes:
        role: ``chief:0``, ``ps:1``, ``worker:0``, ...
        address: host:port of its server.
        version: See ``this_version``.
        host: Name of its machine.
        pid: Its process there.
        ops: Version of the ops for the zstd codecs: a chief's if it uses them, another role's if
            it has loaded them; else "".
    """

    role: str
    address: str
    version: str
    host: str
    pid: int
    ops: str = ""

    @classmethod
    def mine(cls, role: str, address: str, ops: str = "") -> Announcement:
        """Of this process."""
        return cls(role, address, this_version(), socket.gethostname(), os.getpid(), ops)

    def write(self, folder: Path) -> Path:
        """Write the file, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        path = _path(folder, self.role)
        fresh = path.with_suffix(f".{self.host}.{self.pid}.tmp")
        fresh.write_text(json.dumps(asdict(self)), encoding="utf-8")
        fresh.replace(path)
        return path

    @classmethod
    def read(cls, folder: Path, role: str) -> Announcement | None:
        """What a role said last; None if it said nothing that can be read."""
        try:
            return cls(**json.loads(_path(folder, role).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def refuse_others(self, other: Announcement) -> None:
        """Raise unless both run the same version.

        Raises:
            ClusterError: Names both.
        """
        if other.version != self.version:
            raise ClusterError(
                f"{other.role} ({other.address} on {other.host}) runs {other.version} and "
                f"{self.role} runs {self.version}: start all roles from the same code and image",
                EXIT_OTHER_VERSION,
            )

    def refuse_without_ops(self, chief: Announcement) -> None:
        """Raise unless this role has loaded the ops that a chief uses, if it uses any.

        Raises:
            ClusterError: Names both.
        """
        if chief.ops and self.ops != chief.ops:
            raise ClusterError(
                f"{self.role} ({self.address} on {self.host}) has not loaded the ops of "
                f"transmission 'zstd' that {chief.role} uses (version {chief.ops}): give "
                "`laser-pipeline build-ops` there, and start it again",
                EXIT_OTHER_VERSION,
            )


@cache
def this_version() -> str:
    """The version that all roles must share: the package's, and a hash of code and libraries."""
    code = code_fingerprint(["tfx_pipeline.training.run_fn"])
    return f"laser-ranking {metadata.version('laser-ranking')} ({code[:12]})"


@contextlib.contextmanager
def announced(mine: Announcement, folder: Path) -> Iterator[None]:
    """Announce this role while the block runs.

    The file is renewed from a thread: one that grows old is of a role that is gone.
    """
    path = mine.write(folder)
    ended = Event()

    def renew() -> None:
        while not ended.wait(_RENEW_SECONDS):
            with contextlib.suppress(OSError):  # a full disk is for the checkpoint to tell
                mine.write(folder)

    renewer = Thread(target=renew, name="announce", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join()
        path.unlink(missing_ok=True)


def is_at_work(role: str, folder: Path, mine: Announcement) -> bool:
    """Whether another role is announced now."""
    return _fresh(folder, role, mine.write(folder).stat().st_mtime) is not None


def refuse_other_chief(mine: Announcement, folder: Path) -> None:
    """Raise if a chief of another version, or with ops that are not here, is at work in a folder.

    Raises:
        ClusterError: Names both.
    """
    chief = _fresh(folder, "chief:0", mine.write(folder).stat().st_mtime)
    if chief is not None:
        mine.refuse_others(chief)
        mine.refuse_without_ops(chief)


def wait_for_roles(
    mine: Announcement, addresses: Mapping[str, list[str]], folder: Path, seconds: float
) -> None:
    """Wait until every server and worker has announced itself, in the version of this chief.

    Args:
        mine: The chief's announcement.
        addresses: Of all tasks by job. What was announced for another address is of another
            cluster and does not count.
        folder: Where the announcements lie.
        seconds: How long to wait.

    Raises:
        ClusterError: A role is missing, of another version, or lacks the chief's ops.
    """
    roles = {
        f"{job}:{index}": address
        for job in ("ps", "worker")
        for index, address in enumerate(addresses.get(job, []))
    }
    end = time.monotonic() + seconds
    while True:
        now = mine.write(folder).stat().st_mtime
        found = {role: _fresh(folder, role, now) for role in roles}
        here = {role: each for role, each in found.items() if each and each.address == roles[role]}
        for each in here.values():
            mine.refuse_others(each)
            each.refuse_without_ops(mine)
        missing = [role for role in roles if role not in here]
        if not missing:
            return
        if time.monotonic() > end:
            where = ", ".join(f"{role} ({roles[role]})" for role in missing)
            raise ClusterError(
                f"after {seconds:.0f} s nothing was heard from {where}: start each with `python "
                f"-m tfx_pipeline.cluster.role --folder {folder}`, on a file system that all share",
                EXIT_MISSING_ROLE,
            )
        time.sleep(_POLL_SECONDS)


def _fresh(folder: Path, role: str, now: float) -> Announcement | None:
    """What a role says if it is at work; ages are told by the file system's own clock."""
    try:
        age = now - _path(folder, role).stat().st_mtime
    except OSError:
        return None
    return Announcement.read(folder, role) if age < _FRESH_SECONDS else None


def _path(folder: Path, role: str) -> Path:
    return folder / f"{role.replace(':', '-')}.json"
