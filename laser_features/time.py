"""Times: int64 milliseconds UTC everywhere; differences are taken in integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laser_features.errors import TimeUnitError
from laser_features.local_time import local_ms

MS_PER_HOUR = 3_600_000
MS_PER_DAY = 24 * MS_PER_HOUR
# In milliseconds: 3 March 1973 and the year 5138. The same magnitudes read as seconds, or as
# microseconds, lie far outside any log, so a unit mistake cannot pass.
EARLIEST_MS = 10**11
LATEST_MS = 10**14
_INT32_MAX = np.iinfo(np.int32).max


def check_milliseconds(times: ArrayLike, what: str) -> None:
    """Raise unless every time is plausibly in milliseconds since 1970, UTC.

    Args:
        times: Integers of any shape; empty passes.
        what: Name of the column or argument, for the message.

    Raises:
        TimeUnitError: A time outside [10**11, 10**14).

    Example:
        >>> check_milliseconds([1_650_000_000_000], "timestamp")
        >>> check_milliseconds([1_650_000_000], "timestamp")
        Traceback (most recent call last):
        laser_features.errors.TimeUnitError: timestamp holds 1650000000, which looks like seconds; \
times are milliseconds since 1970 UTC: multiply by 1000
    """
    values = np.asarray(times)
    if values.size == 0:
        return
    low, high = int(values.min()), int(values.max())
    if low >= EARLIEST_MS and high < LATEST_MS:
        return
    if low <= 0:
        found, advice = f"{low}, which is not a time", "give milliseconds since 1970 UTC"
    elif low < EARLIEST_MS:
        found = f"{low}, which looks like seconds"
        advice = "times are milliseconds since 1970 UTC: multiply by 1000"
    else:
        found = f"{high}, which looks like microseconds or nanoseconds"
        advice = "times are milliseconds since 1970 UTC: divide by 1000 or 1000000"
    raise TimeUnitError(f"{what} holds {found}; {advice}")


def hour_of_day(time_ms: ArrayLike, zone: float | str = 0.0) -> NDArray[np.int64]:
    """Hour 0 to 23 of each time on a clock.

    Args:
        time_ms: Milliseconds since 1970 UTC.
        zone: The clock's fixed offset from UTC in hours, or its time zone by IANA name.

    Example:
        >>> hour_of_day([1_650_931_200_000], 8)  # 26 April 2022 00:00 UTC
        array([8])
        >>> hour_of_day([1_650_931_200_000], "America/New_York")  # summer time
        array([20])
    """
    return local_ms(time_ms, zone) // MS_PER_HOUR % 24


def day_of_week(time_ms: ArrayLike, zone: float | str = 0.0) -> NDArray[np.int64]:
    """Weekday of each time on a clock (see ``hour_of_day``): Monday 0 to Sunday 6.

    Example:
        >>> day_of_week([1_650_931_200_000])  # a Tuesday
        array([1])
    """
    # 1 January 1970 was a Thursday, weekday 3.
    return (local_ms(time_ms, zone) // MS_PER_DAY + 3) % 7


def age_seconds(time_ms: ArrayLike, event_ms: ArrayLike) -> NDArray[np.int32]:
    """Whole seconds from event to request, within [0, 2**31 - 1].

    The difference is taken in int64: milliseconds since 1970 do not fit float32, and 32-bit
    backends could not take it at all.

    Example:
        >>> age_seconds(1_650_000_002_999, [1_650_000_001_000, 1_650_000_003_000])
        array([1, 0], dtype=int32)
    """
    difference = np.asarray(time_ms, np.int64) - np.asarray(event_ms, np.int64)
    return np.clip(difference // 1000, 0, _INT32_MAX).astype(np.int32)


def age_minutes(time_ms: ArrayLike, start_ms: ArrayLike) -> NDArray[np.int64]:
    """Whole minutes from start to request, at least 0; -1 where the start is not known (<= 0).

    Example:
        >>> age_minutes(1_650_000_120_000, [1_650_000_000_001, 1_650_000_200_000, 0])
        array([ 1,  0, -1])
    """
    start = np.asarray(start_ms, np.int64)
    minutes = np.maximum((np.asarray(time_ms, np.int64) - start) // 60_000, 0)
    return np.where(start > 0, minutes, -1)
