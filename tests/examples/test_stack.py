"""The tutorials of the store, of serving and of training on a cluster run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Load = Callable[[str], dict[str, Any]]


def test_every_example_is_tested_here() -> None:
    tests = Path(__file__).parent.glob("test_*.py")
    text = "".join(path.read_text(encoding="utf-8") for path in tests)
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.stem}' in text, f"{path.name} is run by no test"


def test_a_served_model_answers_as_the_ranker_does(load: Load) -> None:
    assert load("export_and_serve")["main"]() < 1e-5


def test_a_store_reads_as_of_a_time(load: Load, tmp_path: Path) -> None:
    assert load("store_in_20_lines")["main"](str(tmp_path)) == {
        "now": [[12, 11, 0], [13, 0, 0]],
        "earlier": [[11, 0, 0], [0, 0, 0]],
        "again": [[12, 11, 0], [13, 0, 0]],
        "latest": [[14, 12, 11], [13, 0, 0]],
    }


@pytest.mark.timeout(300)
def test_parameter_servers_share_the_tables() -> None:
    """In a process of its own, because a chief takes over TensorFlow's devices."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "parameter_servers.py")],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert "table item: 100 + 100 rows" in done.stdout
