"""Day after day: each day's model begins with the last blessed one and predicts the next day."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from tfx_pipeline.check_run import check_run
from tfx_pipeline.config import REPORT, PipelineConfig
from tfx_pipeline.errors import NotPushedError
from tfx_pipeline.results.blessed_models import BlessedModel, last_blessed_model
from tfx_pipeline.results.spans_report import SpanResult, keep_span_result
from tfx_pipeline.runners.local import run_local
from tfx_pipeline.span import Span, clock_of
from tfx_pipeline.training.warm_start import WarmStart


def run_spans(
    config: PipelineConfig,
    days: Sequence[date],
    say: Callable[[str], None] = print,
    cold_start: bool = False,
) -> list[SpanResult]:
    """Run the pipeline once per day, in order; a day whose model is refused does not end the rest.

    Each day is trained on and the next one is predicted, so the log must hold the day after the
    last one, too. A model begins with the last blessed model that had learned nothing later, is
    compared with it, and is pushed if it passes the gates of the config. A day whose model was
    refused is learned by no later one. The same call again takes from the cache what is done.

    Args:
        config: What to run; its splits are not looked at.
        days: The local days, see ``clock_of``.
        say: Takes lines of progress.
        cold_start: Begin the first day's training from nothing.

    Returns:
        What came out, one per day; also kept in the work folder as ``spans.jsonl`` and
        ``spans.html``.

    Raises:
        PipelineError: A day without impressions, or a model of another spec or shape than the last
            blessed one; days before it are done.
        Exception: Whatever a component raised.
    """
    clock = clock_of(config.load_spec())
    results = []
    for number, day in enumerate(days):
        span = Span(day, clock)
        began = time.monotonic()
        before = last_blessed_model(config.metadata, span.train.start)
        dated, begins_with = _dated(config, span, before, cold_start and number == 0)
        say(f"span {span}: {_begins(begins_with, before)}")
        report = _run(dated, say)
        result = SpanResult.of_report(
            str(span),
            str(span.next_day),
            report,
            begins_with.run_id if begins_with else "",
            time.monotonic() - began,
        )
        keep_span_result(result, config.work)
        results.append(result)
    return results


def _dated(
    config: PipelineConfig, span: Span, before: BlessedModel | None, cold_start: bool
) -> tuple[PipelineConfig, BlessedModel | None]:
    """The config of one day, and what its training begins with."""
    dated = replace(
        config,
        splits={"train": span.train, "eval": span.eval},
        baseline_model=before.model if before else "",
        warm_start="",
    )
    check_run(dated)
    if before is None or cold_start:
        return dated, None
    WarmStart.load(before.checkpoints).check_fits(config.load_spec(), config.model, config.training)
    return replace(dated, warm_start=before.checkpoints), before


def _begins(model: BlessedModel | None, before: BlessedModel | None) -> str:
    if model is not None:
        return f"begins with the model of run {model.run_id}"
    if before is not None:
        return f"begins anew; compared with the model of run {before.run_id}"
    return "begins anew: no blessed model ends before it"


def _run(config: PipelineConfig, say: Callable[[str], None]) -> dict[str, Any]:
    try:
        return run_local(config, say, resolve_baseline=False)
    except NotPushedError as error:
        say(str(error))
        return dict(json.loads((config.work / REPORT).read_text(encoding="utf-8")))
