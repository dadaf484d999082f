"""A span: one local day of the log, which is trained on and whose next day is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from components.seqvault_example_gen.time_range import TimeRange
from laser_features import FeatureSpec
from tfx_pipeline.errors import PipelineError


@dataclass(frozen=True)
class Span:
    """A day of a clock: train on it, evaluate on the next.

    Attributes:
        day: The local day.
        zone: Of the clock.

    Example:
        >>> span = Span(date(2022, 5, 5), timezone(timedelta(hours=8)))
        >>> print(span, span.train)
        2022-05-05 2022-05-04 16:00:00 UTC to 2022-05-05 16:00:00 UTC
    """

    day: date
    zone: tzinfo

    def __str__(self) -> str:
        return self.day.isoformat()

    @property
    def next_day(self) -> date:
        """The day that is predicted."""
        return self.day + timedelta(days=1)

    @property
    def train(self) -> TimeRange:
        """The day's own time; 23 or 25 hours long where the clock is moved."""
        return self._day(0)

    @property
    def eval(self) -> TimeRange:
        """The next day's time."""
        return self._day(1)

    def _day(self, ahead: int) -> TimeRange:
        return TimeRange(*(self._midnight(ahead + more) for more in (0, 1)))

    def _midnight(self, ahead: int) -> int:
        day = self.day + timedelta(days=ahead)
        return round(datetime(day.year, day.month, day.day, tzinfo=self.zone).timestamp() * 1000)


def parse_days(text: str) -> tuple[date, ...]:
    """The days that are meant by one, or by the first and the last.

    Raises:
        PipelineError: They are no days, or the last comes before the first.

    Example:
        >>> [str(day) for day in parse_days("2022-04-30:2022-05-01")]
        ['2022-04-30', '2022-05-01']
    """
    first, separator, last = text.partition(":")
    try:
        start = date.fromisoformat(first)
        end = date.fromisoformat(last) if separator else start
    except ValueError as error:
        raise PipelineError(
            f"a span is a day like 2022-05-05, and several are 2022-05-05:2022-05-14; received "
            f"{text!r} ({error})"
        ) from error
    if end < start:
        raise PipelineError(f"the spans {text} end before they begin; give the first day first")
    return tuple(_days(start, end))


def _days(start: date, end: date) -> Iterator[date]:
    for number in range((end - start).days + 1):
        yield start + timedelta(days=number)


def clock_of(spec: FeatureSpec) -> tzinfo:
    """The clock by which a log's days begin: that of the spec's derived context fields, or UTC.

    Raises:
        PipelineError: They have different ones.
    """
    fields = [field for field in spec.context_fields.values() if field.derive is not None]
    zones = {field.time_zone or field.utc_offset_hours for field in fields}
    if len(zones) > 1:
        raise PipelineError(
            f"feature spec {spec.name!r} has context fields of several clocks "
            f"({', '.join(sorted(map(str, zones)))}), so a day is not one thing: give them one "
            "time_zone or utc_offset_hours"
        )
    zone = next(iter(zones), 0.0)
    return ZoneInfo(zone) if isinstance(zone, str) else timezone(timedelta(hours=zone))
