"""Times of events: milliseconds since 1970, and what other units look like."""

import numpy as np

from seqvault.errors import TimeUnitError

# Seconds since 1970 of 1998 and later would be milliseconds of January 1970, and
# microseconds of 1973 and later milliseconds of the year 5138 and later.
SECONDS_FROM, SECONDS_TO, MICROSECONDS_FROM = 900_000_000, 100_000_000_000, 100_000_000_000_000


NO_BOUND = np.iinfo(np.int64).max


def check_times(times: np.ndarray, what: str, bounds: bool = False) -> None:
    """Raises ``TimeUnitError`` unless all times can be milliseconds since 1970.

    Args:
        times: int64.
        what: they are, for the message.
        bounds: ``NO_BOUND`` may be among them.
    """
    if not len(times):
        return
    least = int(times.min())
    if (bounds and least == NO_BOUND) or (
        least >= SECONDS_TO and int(times.max()) < MICROSECONDS_FROM
    ):
        return
    wrong = (
        (times < 0)
        | ((times >= SECONDS_FROM) & (times < SECONDS_TO))
        | ((times >= MICROSECONDS_FROM) & ~(bounds & (times == NO_BOUND)))
    )
    if wrong.any():
        value = int(times[wrong.argmax()])
        guess = (
            "looks like seconds: multiply by 1000"
            if SECONDS_FROM <= value < SECONDS_TO
            else "is negative: times start at 1970"
            if value < 0
            else "looks like microseconds or nanoseconds: divide to milliseconds"
        )
        raise TimeUnitError(f"{what} must be int64 milliseconds since 1970; {value} {guess}.")
