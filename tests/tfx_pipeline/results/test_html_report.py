"""The page of a run: whole, self-contained, and with what the report holds."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tfx_pipeline.results.html_report import html_report
from tfx_pipeline.results.score_histogram import (
    NAME,
    auc_interval,
    calibration_curve,
    lift_curve,
    read_histogram,
    to_json,
)

METRICS = {
    "auc": 0.8, "gauc": 0.7, "log_loss": 0.5, "normalised_entropy": 0.9, "calibration": 1.01,
    "impressions": 10_000.0, "click_rate": 0.3,
}  # fmt: skip
REPORT = {
    "run_id": "2026-01-01T00:00:00",
    "pushed": "/work/serving/laser/17",
    "problems": [],
    "seconds": {"SeqVaultExampleGen": None, "Trainer": 12.34},
    "join": {"impressions": 4000, "unknown_users": 2},
    "training": {"eval/auc": 0.79},
    "evaluation": {"": METRICS, "scenario=<b>": {**METRICS, "auc": float("nan")}},
    "anomalies": ["train: a & b: odd"],
    "gates": {"AUC": {"found": 0.8, "asked": "above 0.5", "passed": True}},
    "calibration_curve": [(0.1, 0.12, 50), (0.4, 0.38, 50)],
    "lift_curve": [(0.1, 2.5), (1.0, 1.0)],
    "statistics": {"candidate_item_id": {"missing": 0, "zeros": 3, "min": 1.0, "max": 99.0}},
    "lineage": [["examples", "SeqVaultExampleGen", "/work/pipeline/examples/2"]],
}
_VOID = {"meta", "circle", "path", "polyline", "br"}


class Page(HTMLParser):
    """Checks that every element is closed, and keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.text, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(report):
    page = Page()
    page.feed(html_report(report))
    assert page.open == []
    return page


def test_the_page_is_whole_and_needs_nothing_else():
    page = read(json.loads(json.dumps(REPORT)))
    source = html_report(REPORT)
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags
    assert not re.search(r"(src|href)=|@import|url\(", source)
    assert page.tags.count("svg") == 2


def test_the_page_holds_metrics_intervals_gates_statistics_and_lineage():
    text = " | ".join(read(REPORT).text)
    for expected in (
        "pushed to", "/work/serving/laser/17", "0.7897 to 0.8103", "10,000", "above 0.5", "passed",
        "candidate_item_id", "SeqVaultExampleGen", "/work/pipeline/examples/2", "cached", "12.3",
        "train: a & b: odd", "scenario=<b>",
    ):  # fmt: skip
        assert expected in text, expected


def test_a_run_that_failed_says_why():
    text = " | ".join(read({"run_id": "1", "pushed": None, "problems": ["a < b"]}).text)
    assert "Nothing was pushed" in text and "a < b" in text


def test_the_interval_of_an_auc_narrows_with_more_impressions():
    low, high = auc_interval(0.8, 1000, 0.3)
    assert low < 0.8 < high and high - low < 0.07
    wider = auc_interval(0.8, 100, 0.3)
    assert wider[0] < low and wider[1] > high
    assert auc_interval(0.8, 100, 0.0) is None
    assert auc_interval(float("nan"), 100, 0.5) is None


def test_the_interval_holds_the_true_auc_as_often_as_it_says():
    rng = np.random.default_rng(3)
    inside, true = 0, 0.7602499389065233  # of normal scores one standard deviation apart
    for _ in range(200):
        labels = rng.random(600) < 0.4
        scores = rng.normal(size=600) + labels
        order = np.argsort(np.argsort(scores)) + 1
        positives, negatives = labels.sum(), (~labels).sum()
        found = (order[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives)
        low, high = auc_interval(float(found), 600, float(labels.mean()))
        inside += low <= true <= high
    assert 180 <= inside <= 199


def test_curves_of_a_histogram_made_by_hand(tmp_path):
    histogram = np.zeros((2, 4), np.int64)
    histogram[0], histogram[1] = [6, 2, 1, 1], [0, 2, 3, 5]
    whole = calibration_curve(histogram)
    assert sum(count for _, _, count in whole) == 20
    assert whole[0] == (0.125, 0.0, 6) and whole[-1] == (0.875, pytest.approx(5 / 6), 6)
    lift = lift_curve(histogram)
    assert lift[0] == (0.3, pytest.approx(5 / 6 / 0.5)) and lift[-1] == (1.0, 1.0)
    assert lift_curve(np.array([[3], [0]])) == []
    assert calibration_curve(np.zeros((2, 4), np.int64)) == []
    assert read_histogram(str(tmp_path)) is None
    (tmp_path / NAME).write_text(to_json(histogram))
    assert (read_histogram(str(tmp_path)) == histogram).all()
