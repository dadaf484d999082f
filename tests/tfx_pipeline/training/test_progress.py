"""Progress of training is reported for as long as it runs, whatever a report meets."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tfx_pipeline.training import loop
from tfx_pipeline.training.input_wait import Waited
from tfx_pipeline.training.metrics_log import MetricsLog
from tfx_pipeline.training.running_totals import Totals


class CountingTotals:
    """One more impression at every read; the second read fails."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> Totals:
        self.reads += 1
        if self.reads == 2:
            raise ConnectionError("a parameter server is gone for a moment")
        return Totals(np.full((2, 4), self.reads), float(self.reads))


def test_reports_go_on_after_one_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []
    enough = threading.Event()

    def report(line: str) -> None:
        lines.append(line)
        if len(lines) == 1:
            raise BrokenPipeError("nobody reads the output")
        if len(lines) == 4:
            enough.set()

    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.001)
    running = object.__new__(loop.TrainingLoop)
    running._totals, running._report, running._traffic = CountingTotals(), report, None
    running._metrics, running._wait = MetricsLog(None), SimpleNamespace(read=Waited)
    running._step = SimpleNamespace(state=SimpleNamespace(step=tf.constant(7)))
    with running._progress("epoch 1", lambda seen: ""):
        assert enough.wait(30)
    assert all(line.startswith("epoch 1: ") for line in lines)
    assert caplog.text.count("progress of training cannot be reported") == 1
    assert "a parameter server is gone" in caplog.text
