"""Hours, weekdays, ages and the unit check."""

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_features import TimeUnitError, check_milliseconds
from laser_features.time import age_minutes, age_seconds, day_of_week, hour_of_day

TIMES = st.integers(10**11, 4 * 10**12)


@given(TIMES, st.sampled_from([-8, 0, 5.5, 8]))
def test_hour_and_weekday_equal_the_calendar(time_ms, offset):
    clock = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=time_ms)
    local = clock.astimezone(timezone(timedelta(hours=offset)))
    assert hour_of_day([time_ms], offset).tolist() == [local.hour]
    assert day_of_week([time_ms], offset).tolist() == [local.weekday()]


@given(TIMES, TIMES)
def test_ages_are_whole_seconds_within_int32(request_ms, event_ms):
    expected = min(max((request_ms - event_ms) // 1000, 0), 2**31 - 1)
    age = age_seconds(request_ms, np.array([event_ms]))
    assert age.dtype == np.int32 and age.tolist() == [expected]


@given(TIMES, st.one_of(TIMES, st.integers(-5, 0)))
def test_minutes_are_whole_and_never_negative_unless_unknown(request_ms, start_ms):
    expected = max((request_ms - start_ms) // 60_000, 0) if start_ms > 0 else -1
    assert age_minutes(request_ms, np.array([start_ms])).tolist() == [expected]


def test_ages_are_exact_where_float32_is_not():
    # 1.65e12 ms needs 41 bits: in float32 both differences would be 0 or 131 s.
    now = 1_650_000_061_000
    assert age_seconds(now, [now - 1_000, now - 61_000]).tolist() == [1, 61]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1_650_000_000, "seconds.*multiply by 1000"),
        (1_650_000_000_000_000, "microseconds.*divide"),
        (0, "not a time"),
        (-5, "not a time"),
    ],
)
def test_a_wrong_unit_is_named(value, message):
    good = 1_650_000_000_000
    with pytest.raises(TimeUnitError, match=message) as error:
        check_milliseconds(np.array([good, value]), "impressions.timestamp")
    assert "impressions.timestamp" in str(error.value) and str(value) in str(error.value)


def test_milliseconds_and_empty_pass():
    check_milliseconds([10**11, 1_650_000_000_000, 10**14 - 1], "x")
    check_milliseconds([], "x")


@settings(max_examples=60, deadline=None)
@given(
    moment=st.integers(10**11, 4 * 10**12),
    zone=st.sampled_from(
        ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"]
    ),
)
def test_clocks_of_a_time_zone_follow_its_daylight_saving(moment, zone):
    local = datetime.fromtimestamp(moment // 1000, ZoneInfo(zone))
    assert hour_of_day([moment, moment], zone).tolist() == [local.hour] * 2
    assert day_of_week([moment], zone).tolist() == [local.weekday()]


def test_the_hour_that_a_change_skips_or_repeats():
    # 27 March 2022: 01:59:59 CET is followed by 03:00:00 CEST at 01:00 UTC.
    before = int(datetime(2022, 3, 27, 0, 59, 59, tzinfo=timezone.utc).timestamp() * 1000)
    assert hour_of_day([before, before + 1000], "Europe/Berlin").tolist() == [1, 3]
    # 30 October 2022: 02:59:59 CEST is followed by 02:00:00 CET.
    before = int(datetime(2022, 10, 30, 0, 59, 59, tzinfo=timezone.utc).timestamp() * 1000)
    assert hour_of_day([before, before + 1000], "Europe/Berlin").tolist() == [2, 2]
