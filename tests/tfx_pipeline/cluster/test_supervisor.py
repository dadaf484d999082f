"""The supervisor with roles that are small scripts: who is restarted, and that none is left."""

import io
import json
import signal
import subprocess
import sys
import time

import pytest

from tfx_pipeline.cluster.exit_codes import EXIT_GAVE_UP
from tfx_pipeline.cluster.live_view import LiveView
from tfx_pipeline.cluster.local_cluster import LocalCluster
from tfx_pipeline.cluster.supervisor import Supervisor
from tfx_pipeline.errors import ClusterError

ROLE = """
import json, os, pathlib, sys, time
task = json.loads(os.environ["TF_CONFIG"])["task"]
name = f"{task['type']}:{task['index']}"
starts = pathlib.Path(sys.argv[1]) / name
starts.open("a").write(f"{os.getpid()}\\n")
count = len(starts.read_text().split())
"""
FOREVER = "time.sleep(100)"
NAMES = ("chief:0", "ps:0", "worker:0", "worker:1")


def command(folder, body):
    return [sys.executable, "-c", ROLE + body, str(folder)]


class Starts:
    """The processes of each role, one per start."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    def __call__(self, name):
        path = self.folder / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def counts(self):
        return [len(self(name)) for name in NAMES]


@pytest.fixture
def starts(tmp_path):
    return Starts(tmp_path / "starts")


def supervise(starts, tmp_path, chief, ps=FOREVER, worker=FOREVER, cluster="local:ps=1,workers=2"):
    output = io.StringIO()
    commands = {
        job: command(starts.folder, body)
        for job, body in (("chief", chief), ("ps", ps), ("worker", worker))
    }
    folder = tmp_path / "cluster"
    try:
        Supervisor(LocalCluster.parse(cluster), commands, folder, LiveView(folder, output)).run()
    finally:
        assert not any(is_alive(pid) for name in NAMES for pid in starts(name))
    return output.getvalue()


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_that_dies_is_restarted_alone(starts, tmp_path):
    worker = "count == 1 and name == 'worker:1' and sys.exit(9)\n" + FOREVER
    other = "pathlib.Path(sys.argv[1], 'worker:1')"
    chief = f"""
while not {other}.exists() or len({other}.read_text().split()) < 2:
    time.sleep(0.05)
print('trained')"""
    said = supervise(starts, tmp_path, chief, worker=worker)
    assert "worker:1 ended (exit 9)" in said and "starting worker:1\n" in said
    assert "trained" in said
    assert starts.counts()[0] == 1 and starts.counts()[3] == 2
    roles = json.loads((tmp_path / "cluster" / "cluster.json").read_text())
    assert {role["role"]: role["restarts"] for role in roles} == {
        "chief:0": 0,
        "ps:0": 0,
        "worker:0": 0,
        "worker:1": 1,
    }


def test_a_lost_server_restarts_servers_and_chief(starts, tmp_path):
    ps = "if count == 1: time.sleep(0.5); os.kill(os.getpid(), 9)\n" + FOREVER
    chief = "count == 1 and time.sleep(100)\ntime.sleep(0.5)"
    said = supervise(starts, tmp_path, chief, ps=ps)
    assert "ps:0 ended (SIGKILL)" in said
    assert starts.counts() == [2, 2, 1, 1]


def test_a_chief_that_says_why_is_not_restarted(starts, tmp_path):
    chief = "print('error: the loss is nan', file=sys.stderr); sys.exit(31)"
    with pytest.raises(ClusterError, match=r"^the loss is nan$") as raised:
        supervise(starts, tmp_path, chief)
    assert raised.value.exit_code == 31 and len(starts("chief:0")) == 1


def test_a_role_that_always_dies_ends_the_run(starts, tmp_path):
    with pytest.raises(ClusterError, match=r"worker:[01] died 2 times.*exit 4: no GPU") as raised:
        supervise(
            starts,
            tmp_path,
            FOREVER,
            worker="print('no GPU'); sys.exit(4)",
            cluster="local:ps=1,workers=2,restarts=1",
        )
    assert raised.value.exit_code == EXIT_GAVE_UP


SUPERVISE = """
import json, pathlib, sys
from tfx_pipeline.cluster.live_view import LiveView
from tfx_pipeline.cluster.local_cluster import LocalCluster
from tfx_pipeline.cluster.supervisor import Supervisor
commands, folder = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
try:
    Supervisor(LocalCluster.parse("local:ps=1,workers=1"), commands, folder, LiveView(folder)).run()
except KeyboardInterrupt:
    sys.exit(130)
"""
WATCHED = """
from tfx_pipeline.cluster.end_with_supervisor import end_with_supervisor
end_with_supervisor(0.1)
"""
SAVES = """
import signal
def save(*_):
    pathlib.Path(sys.argv[1], 'saved').touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_supervisor(starts, tmp_path, number):
    """Asked to stop, the chief saves first; killed, the supervisor takes all roles with it."""
    ready = "pathlib.Path(sys.argv[1], 'ready-' + name).touch()\n"
    commands = {
        job: command(starts.folder, f"{WATCHED}{first}{ready}{FOREVER}")
        for job, first in (("chief", SAVES), ("ps", ""), ("worker", ""))
    }
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, json.dumps(commands), str(tmp_path / "cluster")],
        stdout=subprocess.DEVNULL,
    )
    names = NAMES[:3]
    wait_until(lambda: all((starts.folder / f"ready-{name}").exists() for name in names))
    supervisor.send_signal(number)
    code = supervisor.wait(30)
    wait_until(lambda: not any(is_alive(pid) for name in names for pid in starts(name)))
    assert code == (-9 if number == signal.SIGKILL else 130)
    assert (starts.folder / "saved").exists() == (number != signal.SIGKILL)


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
