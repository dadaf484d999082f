"""Starts all roles of a cluster on this machine, restarts what dies, and ends all of them."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfx_pipeline.cluster.chief import ERROR
from tfx_pipeline.cluster.exit_codes import EXIT_GAVE_UP
from tfx_pipeline.cluster.live_view import LiveView, RoleState
from tfx_pipeline.cluster.local_cluster import LocalCluster
from tfx_pipeline.cluster.restart_policy import Action, RestartBudget, action_after
from tfx_pipeline.cluster.role_process import RoleProcess
from tfx_pipeline.cluster.training_job import TrainingJob
from tfx_pipeline.errors import ClusterError
from tfx_pipeline.feature_host.silent_streams import FEATURE_HOSTS

_POLL_SECONDS = 0.2
_SHOW_SECONDS = 2.0
_CHECKPOINT_SECONDS = 600.0
"""How long a chief that was asked to stop may take to finish its files and save."""
_END_SECONDS = 5.0


class Supervisor:
    """Runs one job over a local cluster.

    Whoever asks it to stop (Ctrl-C, SIGTERM) has the chief save a checkpoint first; who asks twice
    ends everything at once. No role outlives it.

    Args:
        cluster: How many roles of each kind.
        commands: What each job's roles run, by ``chief``, ``ps``, ``worker``.
        folder: For the roles' announcements and logs; emptied.
        view: Shows what happens.
        environment: Variables of all roles, beside this process's own.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        commands: Mapping[str, list[str]],
        folder: Path,
        view: LiveView,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._view, self._folder = view, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        addresses = cluster.addresses()
        self._budget = RestartBudget(cluster.restarts)
        self._stops = 0
        self._roles = {
            f"{job}:{index}": RoleProcess(
                f"{job}:{index}",
                commands[job],
                addresses,
                folder,
                view.say if job == "chief" else None,
                environment,
            )
            for job in ("ps", "worker", "chief")
            for index in range(len(addresses[job]))
        }
        self._chief = self._roles["chief:0"]

    def run(self) -> None:
        """Run until the chief has finished.

        Raises:
            ClusterError: The chief ended with an error, or a role died too often; carries the
                exit code.
            KeyboardInterrupt: It was asked to stop, and everything has ended.
        """
        shown = 0.0
        with self._signals():
            try:
                for role in self._roles.values():
                    role.start()
                while not self._step():
                    if time.monotonic() - shown > _SHOW_SECONDS:
                        shown = time.monotonic()
                        self._view.show(self._states())
                    time.sleep(_POLL_SECONDS)
            finally:
                self._end_all()
                with contextlib.suppress(OSError):  # not in place of what ended the run
                    self._view.show(self._states())
                self._view.close()

    def _step(self) -> bool:
        """Look after every role once; True when the chief has finished."""
        if self._stops:
            self._stop()
        for name, role in self._roles.items():
            code = role.exit_code
            if code is None:
                continue
            action = action_after(role.job, code)
            if action is Action.DONE:
                return True
            if action is Action.FAIL:
                raise ClusterError(_reason(role, code), code)
            self._restart(name, role, code, action)
            return False
        return False

    def _restart(self, name: str, role: RoleProcess, code: int, action: Action) -> None:
        pause = self._budget.pause(name, time.monotonic())
        if pause is None:
            raise ClusterError(
                f"{name} died {self._budget.restarts(name)} times within ten minutes, at last "
                f"{_how(code)}: {role.last_line or 'it said nothing'} (its log is in "
                f"{self._folder})",
                EXIT_GAVE_UP,
            )
        again = [role]
        if action is Action.RESTART_ALL_BUT_WORKERS:
            again = [each for each in self._roles.values() if each.job != "worker"]
        names = ", ".join(each.role for each in again)
        # A role that ended itself has said why; the chief's lines are shown as they come.
        said = f": {role.last_line}" if code > 0 and role.job != "chief" and role.last_line else ""
        self._view.say(f"{name} ended ({_how(code)}{said}): {action.value}; starting {names}")
        for each in again:
            each.kill()
        self._wait(pause)
        for each in again:
            if not self._stops:
                each.start()

    def _stop(self) -> None:
        """Have the chief save and end; whatever happens, everything has ended afterwards."""
        if self._stops == 1 and self._chief.is_running:
            self._view.say("stopping: the chief finishes the files under way and saves them")
            self._chief.send(signal.SIGTERM)
            end = time.monotonic() + _CHECKPOINT_SECONDS
            while self._chief.is_running and self._stops == 1 and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
        raise KeyboardInterrupt("stopped")

    def _end_all(self) -> None:
        for role in self._roles.values():
            role.send(signal.SIGTERM)
        end = time.monotonic() + _END_SECONDS
        while any(role.is_running for role in self._roles.values()) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS / 4)
        for role in self._roles.values():
            role.kill()

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._stops:
            time.sleep(_POLL_SECONDS / 4)

    def _states(self) -> list[RoleState]:
        states = []
        for name, role in self._roles.items():
            code = role.exit_code
            cores, memory = role.usage() if code is None else (0.0, 0)
            state = "running" if code is None else _how(code)
            states.append(
                RoleState(
                    name,
                    role.address,
                    role.pid,
                    state,
                    self._budget.restarts(name),
                    round(cores, 2),
                    memory,
                    role.last_line,
                )
            )
        return states

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Count the requests to stop; only the main thread gets any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def count(*_: Any) -> None:
            self._stops += 1

        before = {number: signal.signal(number, count) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def train_on_local_cluster(description: str, job: TrainingJob, folder: Path) -> None:
    """Run a job over a cluster on this machine.

    Args:
        description: See ``LocalCluster.parse``.
        job: The run.
        folder: For announcements, logs, the job's file and ``cluster.json``.

    Raises:
        ClusterError: The description is wrong, or the run ended with an error.
        KeyboardInterrupt: It was asked to stop; its checkpoint is saved.
    """
    cluster = LocalCluster.parse(description)
    python = [sys.executable, "-m"]
    here = ["--folder", str(folder)]
    role = [*python, "tfx_pipeline.cluster.role", *here]
    job_file = folder / "job.json"
    chief = [*python, "tfx_pipeline.cluster.chief", "--job", str(job_file), *here]
    view = LiveView(folder)
    hosts = (job.custom_config.get("training") or {}).get("feature_hosts", ())
    commands = {"chief": chief, "ps": role, "worker": role}
    supervisor = Supervisor(cluster, commands, folder, view, {FEATURE_HOSTS: ",".join(hosts)})
    job.save(job_file)
    supervisor.run()


def _reason(role: RoleProcess, code: int) -> str:
    """Why a role ended, in its own words where it has any."""
    line = role.last_line
    if line.startswith(ERROR):
        return line.removeprefix(ERROR)
    return f"{role.role} ended ({_how(code)}): {line or 'it said nothing'}"


def _how(code: int) -> str:
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
