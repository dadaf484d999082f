"""No worker of a comparison outlives the command."""

import os
import signal
import subprocess
import sys
import time

import pytest

PARENT = """
import multiprocessing, os, time
from tfx_pipeline.compare.end_with_parent import end_with_parent

def work():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(120)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work).start()
    time.sleep(120)
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_with_its_parent(sent, tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.send_signal(sent)
        end = time.monotonic() + 30
        while time.monotonic() < end and _lives(worker):
            time.sleep(0.05)
        assert not _lives(worker)


def test_a_worker_that_cannot_watch_its_parent_ends(tmp_path):
    """An error while waiting must not leave a worker that nothing ends: here it sleeps 120 s."""
    script = PARENT.replace(
        "def work():",
        "from tfx_pipeline.compare import end_with_parent as module\n"
        "def fails(sentinels):\n    raise OSError('no more descriptors')\n\n"
        "def work():\n    module.wait = fails",
    ).replace(".start()\n    time.sleep(120)", ".start()")
    (tmp_path / "parent.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "parent.py")], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if not os.path.exists(f"/proc/{pid}/stat"):  # no Linux, or gone by now
        return sys.platform != "linux"
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"
