"""Compiling the kernels tells a person why it takes long, and is silent when it does not."""

import threading

import pytest

from seqvault import warm_up as module


def test_says_why_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = threading.Event()
    tell = module._say_why_it_takes_long
    monkeypatch.setattr(module, "_QUIET_SECONDS", 0.01)
    monkeypatch.setattr(module, "_say_why_it_takes_long", lambda: (tell(), said.set()))
    monkeypatch.setattr(module, "_run_kernels", lambda: said.wait(30))
    module.warm_up()
    assert "compiling the kernels" in capsys.readouterr().err


def test_is_silent_when_it_is_quick_or_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(module, "_run_kernels", lambda: None)
    module.warm_up()
    monkeypatch.setattr(module, "_run_kernels", fail)
    with pytest.raises(OSError, match="full"):
        module.warm_up()
    assert capsys.readouterr().err == ""
