"""Kills ``laser-pipeline run`` at random moments, gives the same command again, and compares.

    python tests/end_to_end/kill_run.py --points 30 --seed 1 --output results.json

Components are chosen in turn. The run is ended with SIGKILL a random time after one began, and the
same command is given again, which goes on from there: two kills later in the same work folder it
must end well with what the undisturbed run had: the join's counts, every bit of the pushed model's
weights, and the metrics. The next three kills begin in an empty folder.

    python tests/end_to_end/kill_run.py --data D --store S --config C --work W --kill TEXT:SECONDS

kills one run after another in the same folder, each the given time after a line that holds the
text, and then lets one end.

Runs are forked from a process that has imported everything: to import TFX takes longer than most
components.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = """
name: killed
min_auc: 0.0
rows_per_file: 100
checked_requests: 1
model:
  {dim: 8, mixer_dim: 8, num_tokens: 8, mixer_blocks: 1, encoder: {num_recent_segments: 2}}
training: {batch_size: 16, epochs: 2, checkpoint_files: 1}
"""
PREPARE = """
import sys
from pathlib import Path
from tfx_pipeline.datasets import GeneratorSettings, prepare
from tfx_pipeline.load_store import load_store
sizes = GeneratorSettings(users=30, items=1000, min_events=5, max_events=30, requests=60)
folder = Path(sys.argv[1])
prepare(None, folder / "data", generator=sizes)
load_store(folder / "data", folder / "store")
"""
BEGINS = re.compile(r"^\[ ?\d+/\d+\] (\w+) \.\.\.$", re.MULTILINE)
# Lines while a component runs have whole seconds.
ENDS = re.compile(r"^\[ ?\d+/\d+\] (\w+): (?:\d+\.\d s|cached)$", re.MULTILINE)
KILLS_IN_A_FOLDER = 3
LONGEST_SECONDS = 900.0
POLL_SECONDS = 0.01


class KillError(AssertionError):
    """A run that did not end as the undisturbed one did."""


class Run:
    """A forked ``laser-pipeline run`` whose output goes to a file."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        log.write_text("")
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                output = os.open(log, os.O_WRONLY | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                from tfx_pipeline import cli

                code = cli.main(arguments)
                sys.stdout.flush()
            finally:
                os._exit(code)

    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return None if pid == 0 else os.waitstatus_to_exitcode(status)

    def kill_after(self, text: str, seconds: float) -> bool:
        """SIGKILL some time after the output holds a text; False if it had ended by then."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while text not in self.log.read_text() and time.monotonic() < deadline:
            if (code := self.code()) is not None:
                raise KillError(f"ended with {code} before {text!r}:\n{self.log.read_text()}")
            time.sleep(POLL_SECONDS)
        time.sleep(seconds)
        if self.code() is not None:
            return False
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return True

    def end(self) -> dict[str, float]:
        """Wait until it ends well; returns how long each component took."""
        began: dict[str, float] = {}
        took: dict[str, float] = {}
        deadline = time.monotonic() + LONGEST_SECONDS
        code = None
        while code is None and time.monotonic() < deadline:
            code = self.code()
            said, now = self.log.read_text(), time.monotonic()
            for name in BEGINS.findall(said):
                began.setdefault(name, now)
            for name in ENDS.findall(said):
                took.setdefault(name, now - began.get(name, now))
            time.sleep(POLL_SECONDS)
        if code != 0:
            raise KillError(f"ended with {code}:\n{self.log.read_text()}")
        return took


def result(work: Path) -> dict[str, Any]:
    """What must not depend on kills: counts, metrics, weights; checks that versions are whole."""
    report = json.loads((work / "last_run.json").read_text())
    if report["problems"] or not report["pushed"]:
        raise KillError(f"nothing was pushed: {report['problems']}")
    (served,) = (work / "serving").iterdir()  # and nothing half written beside it
    versions = sorted(served.iterdir())
    weights = set()
    for version in versions:
        content = (version / "variables" / "variables.data-00000-of-00001").read_bytes()
        weights.add(hashlib.sha256(content).hexdigest())
        if not (version / "saved_model.pb").is_file():
            raise KillError(f"{version} is not whole")
    if str(versions[-1]) != report["pushed"]:
        raise KillError(f"reported {report['pushed']}, but the newest is {versions[-1]}")
    if leftover := [path.name for path in work.glob("training/*")]:
        raise KillError(f"the training folder was not handed over: {leftover}")
    evaluation = {
        name: {metric: value for metric, value in metrics.items() if "diff" not in metric}
        for name, metrics in report["evaluation"].items()
    }
    return {"join": report["join"], "evaluation": evaluation, "weights": sorted(weights)}


def check_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise unless two results are equal.

    Weights are equal bit for bit. Metrics may differ in their last digits: the Evaluator's input
    (tfx_bsl's ``batch_util``) leaves the size of batches to Beam, which goes by how long they take,
    and a request's float32 scores depend on the batch's size in their last bit. Scores of one model
    in batches of 1 to 11 requests: 3 of 110 differed, by 1.5e-8, and the log loss by 1.3e-9; the
    order alone changed it by 1e-16. The bound is eight units in the last place of float32.
    """
    for name in ("join", "weights"):
        if found[name] != expected[name]:
            raise KillError(f"{name}: found {found[name]}, expected {expected[name]}")
    if found["evaluation"].keys() != expected["evaluation"].keys():
        raise KillError(f"slices: found {list(found['evaluation'])}")
    for name, metrics in expected["evaluation"].items():
        for metric, value in metrics.items():
            other = found["evaluation"][name].get(metric, math.inf)
            both_missing = math.isnan(value) and math.isnan(other)
            if not both_missing and not math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-9):
                raise KillError(f"{metric} of slice {name!r}: found {other}, expected {value}")


def processes_that_name(folder: Path) -> list[str]:
    """Command lines of living processes that hold a folder's path, our own and its parents' not."""
    parents = own_parents()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command and int(path.parent.name) not in parents:
            found.append(command)
    return found


def own_parents() -> set[int]:
    """Ids of this process, its parent, and so on: whoever started it may name the folder too."""
    found = set()
    pid = os.getpid()
    while pid:
        found.add(pid)
        status = Path(f"/proc/{pid}/status").read_text()
        pid = int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])
    return found


def kill_at_random(
    folder: Path, points: int, seed: int, keep: Callable[[dict[str, Any]], None]
) -> int:
    """Kill runs at random moments, keep what happened; returns how many kills were not mended."""
    subprocess.run([sys.executable, "-c", PREPARE, str(folder)], check=True)
    (folder / "config.yaml").write_text(CONFIG)
    random_ = random.Random(seed)

    def arguments(work: Path) -> list[str]:
        given = {"data": folder / "data", "store": folder / "store", "work": work}
        names = [f"--{name}={value}" for name, value in given.items()]
        return ["run", *names, f"--config={folder / 'config.yaml'}"]

    took = Run(arguments(folder / "whole"), folder / "whole.log").end()
    expected = result(folder / "whole")
    print(f"undisturbed: {sum(took.values()):.0f} s, AUC {expected['evaluation']['']['auc']:.4f}")
    stages = list(took)
    order = random_.sample(stages, len(stages))
    chosen = [order[point % len(order)] for point in range(points)]
    kills: list[dict[str, Any]] = []
    for first in range(0, points, KILLS_IN_A_FOLDER):
        work = folder / f"work-{first}"
        log = work.with_suffix(".log")
        # In the order in which they run: what a kill leaves is finished then.
        here = sorted(chosen[first : first + KILLS_IN_A_FOLDER], key=stages.index)
        began, outcome, group = time.monotonic(), "equal", []
        try:
            for stage in here:
                # Also the moment between components, and a little after the end of the last one.
                delay = random_.uniform(0, took[stage] + 0.05)
                group.append({"component": stage, "seconds_into_it": round(delay, 2)})
                # False if it had ended by then.
                group[-1]["killed"] = Run(arguments(work), log).kill_after(f"] {stage} ...", delay)
            Run(arguments(work), log).end()
            found = result(work)
            check_equal(found, expected)
            if left := processes_that_name(work):
                raise KillError(f"left running: {left}")
            # As text, in which NaN equals itself.
            if str(found["evaluation"]) == str(expected["evaluation"]):
                outcome = "equal, and every bit of the metrics"
        except KillError as error:
            outcome = f"FAILED: {error}"
        kills += [{**kill, "folder": work.name, "outcome": outcome} for kill in group]
        said = ", ".join(f"{each['seconds_into_it']:.2f} s into {each['component']}"
                         for each in group)  # fmt: skip
        keep({"undisturbed_seconds": took, "kills": kills})
        print(f"{len(kills):3d} of {points}: {said}, {time.monotonic() - began:.0f} s: {outcome}",
              flush=True)  # fmt: skip
    failed = sum(kill["outcome"].startswith("FAILED") for kill in kills)
    print(f"{points - failed} of {points} kills: the run ended as the undisturbed one did")
    return failed


def kill_in_turn(arguments: list[str], work: Path, kills: list[str], whole: Path | None) -> None:
    """Kill one run after another in one folder, then let one end as the undisturbed one did."""
    log = work.parent / f"{work.name}.log"
    for kill in kills:
        text, _, seconds = kill.rpartition(":")
        if not Run(arguments, log).kill_after(text, float(seconds)):
            raise KillError(f"the run ended before it could be killed at {kill!r}")
    Run(arguments, log).end()
    if left := processes_that_name(work):
        raise KillError(f"left running: {left}")
    if whole is not None:
        check_equal(result(work), result(whole))
    print(f"{len(kills)} kills; the last run ended with the undisturbed result")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for what happened at each kill")
    for name in ("data", "store", "config", "work"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--whole", help="work folder of the undisturbed run, to compare with")
    parser.add_argument("--kill", action="append", default=[], metavar="TEXT:SECONDS")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")  # as ``laser-pipeline`` does
    # Imported before anything is forked. No operation may run here: TensorFlow's threads would be
    # missing in the children.
    import tfx_pipeline.check_run
    import tfx_pipeline.runners.local
    import tfx_pipeline.training.run_fn  # noqa: F401

    if arguments.work:
        names = ("data", "store", "config", "work")
        run = ["run", *(f"--{name}={getattr(arguments, name)}" for name in names)]
        whole = Path(arguments.whole) if arguments.whole else None
        kill_in_turn(run, Path(arguments.work), arguments.kill, whole)
        return 0

    started = {
        "command": f"python tests/end_to_end/kill_run.py --points {arguments.points} "
        f"--seed {arguments.seed}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
        "load_at_start": round(os.getloadavg()[0], 1),
    }

    def keep(found: dict[str, Any]) -> None:
        if arguments.output:
            arguments.output.write_text(json.dumps({**started, **found}, indent=1) + "\n")

    with tempfile.TemporaryDirectory(prefix="kill_run_") as folder:
        failed = kill_at_random(Path(folder), arguments.points, arguments.seed, keep)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
