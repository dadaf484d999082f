"""What the README tells a person to type works."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL_LINES = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).split("\n")
# `make demo` and `make test` themselves are run by `.ci/run`: a test cannot run the tests.
RUN_BY_CI = {"make demo", "make test"}
INLINE_COMMANDS = sorted(
    set(re.findall(r"`((?:laser-\w+|seqvault|make) [^`]*)`", README))
    | set(filter(None, SHELL_LINES))
)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_python_blocks_run(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "block"})
    assert capsys.readouterr().out.strip() == "(2, 3, 1)"


@pytest.mark.parametrize("command", INLINE_COMMANDS)
def test_commands_run(command: str) -> None:
    words = command.split()
    if command in RUN_BY_CI:
        assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    elif words[0] == "make":
        # With DATA=folder or KEEP=1 only what make would run is shown, not run.
        dry = [] if words[1:] == ["help"] else ["--dry-run"]
        result = run("make", *dry, *words[1:])
        assert result.returncode == 0 and result.stdout, result.stderr
    else:
        program = Path(sys.executable).with_name(words[0])
        result = run(str(program), *words[1:])
        assert result.returncode == 0 and "usage:" in result.stdout, result.stderr


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing


def test_the_results_are_those_of_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.readme_table import rendered

    assert rendered(README) == README, "run: python -m benchmarks.readme_table"


def test_the_days_are_drawn_from_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.training import draw_days

    read = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (draw_days.RESULTS, draw_days.ONE_PASS)
    ]
    assert draw_days.OUTPUT.read_text(encoding="utf-8") == draw_days.svg(*read)


def test_the_plot_is_drawn_from_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.layers import draw_lengths

    drawn = draw_lengths.svg(json.loads(draw_lengths.RESULTS.read_text(encoding="utf-8")))
    assert draw_lengths.OUTPUT.read_text(encoding="utf-8") == drawn
