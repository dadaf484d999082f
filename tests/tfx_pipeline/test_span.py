"""Spans are local days, whatever the clock does."""

from datetime import date, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from components.seqvault_example_gen.time_range import TimeRange
from laser_features import FeatureSpec
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.span import Span, clock_of, parse_days

HOUR = 3_600_000
CHINA = timezone(timedelta(hours=8))


def spec(**context):
    tables = {"item": {"rows": 10, "width": 4, "ids": "direct"}}
    tables |= {name: {"rows": 25, "width": 4, "ids": "direct"} for name in context}
    fields = {name: {**field, "table": name} for name, field in context.items()}
    return FeatureSpec.from_dict(
        {
            "name": "clocks", "history": {"max_length": 3}, "tables": tables, "context": fields,
            "event": {"item_id": {"type": "int64", "table": "item"}},
            "label": {"click": {"type": "int8"}},
        }
    )  # fmt: skip


def test_a_day_begins_and_ends_at_local_midnight():
    span = Span(date(2022, 5, 5), CHINA)
    assert span.train == TimeRange.parse("2022-05-05T00:00:00+08:00", "2022-05-06T00:00:00+08:00")
    assert span.eval == TimeRange.parse("2022-05-06T00:00:00+08:00", "2022-05-07T00:00:00+08:00")
    assert str(span) == "2022-05-05" and str(span.next_day) == "2022-05-06"


def test_days_on_which_the_clock_is_moved_are_shorter_or_longer_and_none_overlap():
    berlin = ZoneInfo("Europe/Berlin")
    for day, hours in ((date(2022, 3, 27), 23), (date(2022, 10, 30), 25), (date(2022, 5, 5), 24)):
        span = Span(day, berlin)
        assert span.train.end - span.train.start == hours * HOUR
        assert span.eval.start == span.train.end == Span(span.next_day, berlin).train.start


def test_the_clock_is_that_of_the_derived_context_fields():
    hour = {"derive": "hour_of_day", "utc_offset_hours": 8}
    assert clock_of(spec(hour=hour)) == CHINA
    assert clock_of(spec()) == timezone.utc
    zone = {"derive": "day_of_week", "time_zone": "Europe/Berlin"}
    assert clock_of(spec(weekday=zone)) == ZoneInfo("Europe/Berlin")
    with pytest.raises(PipelineError, match=r"several clocks \(8, Europe/Berlin\)"):
        clock_of(spec(hour=hour, weekday=zone))


def test_days_are_read_as_a_person_writes_them():
    assert parse_days("2022-05-05") == (date(2022, 5, 5),)
    assert len(parse_days("2022-02-27:2022-03-02")) == 4
    for text in ("2022-5-5", "yesterday", "2022-05-05:", "2022-02-30", "2022-05-05:2022-05-06:"):
        with pytest.raises(PipelineError, match="a span is a day like 2022-05-05"):
            parse_days(text)
    with pytest.raises(PipelineError, match="end before they begin"):
        parse_days("2022-05-06:2022-05-05")
