"""Local clocks: a fixed offset from UTC, or a time zone with its daylight saving."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MS_PER_HOUR = 3_600_000
# Since 1972 every zone changes its offset at a full quarter of an hour UTC.
_MS_PER_QUARTER = 900_000


def local_ms(time_ms: ArrayLike, zone: float | str) -> NDArray[np.int64]:
    """What a clock shows, as milliseconds since its own midnight of 1 January 1970.

    Args:
        time_ms: Milliseconds since 1970 UTC, of any shape.
        zone: Offset from UTC in hours, or the IANA name of a time zone.

    Raises:
        ZoneInfoNotFoundError: The zone is not known here.
    """
    times = np.asarray(time_ms, np.int64)
    if not isinstance(zone, str):
        return times + round(zone * _MS_PER_HOUR)
    quarters, place = np.unique(times // _MS_PER_QUARTER, return_inverse=True)
    offsets = np.array([_offset_ms(zone, int(quarter)) for quarter in quarters], np.int64)
    return times + offsets[place].reshape(times.shape)


def is_time_zone(name: object) -> bool:
    """Whether a name is a time zone that is known here.

    Example:
        >>> is_time_zone("Europe/Berlin"), is_time_zone("Berlin"), is_time_zone(8)
        (True, False, False)
    """
    try:
        return isinstance(name, str) and bool(name) and ZoneInfo(name) is not None
    except (KeyError, ValueError, OSError):  # also what lies outside the database's folder
        return False


@lru_cache(maxsize=1 << 16)
def _offset_ms(zone: str, quarter: int) -> int:
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(minutes=15 * quarter)
    offset = moment.astimezone(ZoneInfo(zone)).utcoffset() or timedelta(0)
    return offset // timedelta(milliseconds=1)
