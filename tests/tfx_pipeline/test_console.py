"""Progress on a terminal and in a pipe."""

from __future__ import annotations

import io

import pytest

from tfx_pipeline import console as module
from tfx_pipeline.console import Console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def run(clock, out, monkeypatch):
    monkeypatch.setattr("sys.stdout", out)
    console = Console()
    for second in range(31):
        clock[0] = 100.0 + second
        console.progress("bulk load", 1000 * second, 60_000)
    return out.getvalue()


def test_a_terminal_shows_progress_in_place(clock, monkeypatch):
    drawn = run(clock, Terminal(), monkeypatch)
    assert "\n" not in drawn and drawn.count("\r") == 31
    assert drawn.endswith("   bulk load: 30,000 of 60,000, about 30 s left")


def test_a_pipe_gets_a_line_every_few_seconds(clock, monkeypatch):
    lines = run(clock, io.StringIO(), monkeypatch).splitlines()
    assert lines == [
        "   bulk load: 11,000 of 60,000, about 49 s left",
        "   bulk load: 22,000 of 60,000, about 38 s left",
    ]


def test_a_line_about_silence_is_kept_back_while_progress_shows(clock, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    console = Console()
    console.say_if_silent("load: 10 s")
    console.progress("bulk load", 1, 2)
    console.say_if_silent("load: 20 s")
    assert out.getvalue() == "load: 10 s\n"
