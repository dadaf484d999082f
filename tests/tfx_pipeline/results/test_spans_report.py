"""Day after day: results are kept by day and shown as a table and a plot."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

from tfx_pipeline.results.spans_report import (
    PAGE,
    SPANS,
    SpanResult,
    keep_span_result,
    read_span_results,
    span_lines,
    spans_page,
)

REPORT = {
    "evaluation": {
        "": {"auc": 0.75, "auc_diff": 0.01, "impressions": 1200.0, "log_loss": 0.5,
             "calibration": 1.1},
        "scenario=1": {"auc": 0.1},
    },
    "pushed": "/models/7",
    "problems": [],
}  # fmt: skip
FIRST = SpanResult.of_report(
    "2022-05-05", "2022-05-06",
    {"evaluation": {"": {"auc": 0.7, "impressions": 900.0}}, "pushed": None, "problems": ["<bad>"]},
    "", 3.21,
)  # fmt: skip
SECOND = SpanResult.of_report("2022-05-06", "2022-05-07", REPORT, "run 1", 4)


def test_a_report_tells_what_the_model_before_was_worth_on_the_same_day():
    assert (SECOND.auc, round(SECOND.auc_before, 9), SECOND.impressions) == (0.75, 0.74, 1200)
    assert math.isnan(FIRST.auc_before) and FIRST.seconds == 3.2


def test_results_are_kept_by_day_and_the_newest_of_a_day_counts(tmp_path):
    assert read_span_results(tmp_path) == []
    keep_span_result(SECOND, tmp_path)
    keep_span_result(replace(FIRST, auc=0.1), tmp_path)
    results = keep_span_result(FIRST, tmp_path)
    assert [each.span for each in results] == ["2022-05-05", "2022-05-06"]
    again = read_span_results(tmp_path)
    assert again[1] == SECOND and again[0].auc == 0.7 and math.isnan(again[0].auc_before)
    lines = (tmp_path / SPANS).read_text().splitlines()
    assert json.loads(lines[0], parse_constant=lambda name: 1 / 0)["auc_before"] is None
    assert "2022-05-07" in (tmp_path / PAGE).read_text()


def test_the_table_says_what_was_pushed_and_why_not():
    head, first, second = span_lines([FIRST, SECOND])
    assert head.split()[:3] == ["predicted", "learned", "until"]
    assert first.split()[:4] == ["2022-05-06", "2022-05-05", "900", "0.7000"]
    assert first.endswith("no: <bad>")
    assert second.split() == ["2022-05-07", "2022-05-06", "1,200", "0.7500", "0.7400", "0.5000",
                              "1.1000", "yes"]  # fmt: skip


def test_the_page_is_well_formed_and_plots_both_models():
    page = spans_page([FIRST, SECOND]).replace("<!doctype html>\n", "").replace(
        '<meta charset="utf-8">', ""
    )  # fmt: skip
    root = ElementTree.fromstring(page)
    assert len(root.findall(".//circle")) == 3  # the first day had no model before it
    assert len(root.findall(".//tr")) == 3
    assert ElementTree.fromstring(
        spans_page([]).replace("<!doctype html>\n", "").replace('<meta charset="utf-8">', "")
    ) is not None  # fmt: skip
