"""A half-open range of time that makes one split."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timezone

from laser_features.time import check_milliseconds


@dataclass(frozen=True)
class TimeRange:
    """Milliseconds UTC, ``start`` included, ``end`` excluded.

    Example:
        >>> day = TimeRange.parse("2022-05-05T00:00:00+08:00", "2022-05-09T00:00:00+08:00")
        >>> day
        TimeRange(start=1651680000000, end=1652025600000)
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        check_milliseconds([self.start, self.end], "time range")
        if self.start >= self.end:
            raise ValueError(
                f"a time range must end after it starts; received start {self.start} "
                f"and end {self.end}"
            )

    @classmethod
    def parse(cls, start: int | str | date, end: int | str | date) -> TimeRange:
        """From milliseconds, or ISO 8601 times with an offset (a date alone is midnight UTC)."""
        return cls(_milliseconds(start), _milliseconds(end))

    def overlaps(self, other: TimeRange) -> bool:
        """Whether some time lies in both."""
        return self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        return f"{format_ms(self.start)} to {format_ms(self.end)}"


def format_ms(milliseconds: int) -> str:
    """A time for people.

    Example:
        >>> format_ms(1651680000000)
        '2022-05-04 16:00:00 UTC'
    """
    moment = datetime.fromtimestamp(milliseconds / 1000, tz=timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _milliseconds(moment: int | str | date) -> int:
    if isinstance(moment, int):
        return moment
    if isinstance(moment, date) and not isinstance(moment, datetime):
        moment = moment.isoformat()
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError as error:
            raise ValueError(
                f"a time is milliseconds or ISO 8601 like 2022-05-05T00:00:00+08:00; "
                f"received {moment!r}"
            ) from error
    assert isinstance(moment, datetime)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return round(moment.timestamp() * 1000)
