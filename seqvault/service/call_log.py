"""The log of calls: a sample of those that went well, and most that failed."""

import json
import logging
import threading
import time
from collections.abc import Callable

from seqvault.service.call import Call

LOG = logging.getLogger("seqvault.calls")
LINES_A_SECOND, FAILURES_A_SECOND = 20, 100


class CallLog:
    """Writes a JSON line for a call, for so many calls a second and no more.

    A line for each of thousands of reads a second would take a sixth of the server's CPU; all of
    them are in the metrics. A line says how many were left out before it. Safe for many threads.

    Args:
        lines, failures: a second, of calls that went well and of others.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        lines: int = LINES_A_SECOND,
        failures: int = FAILURES_A_SECOND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._clock, self._lock = (lines, failures), clock, threading.Lock()
        self._second, self._written, self._left_out = 0.0, [0, 0], [0, 0]

    def takes(self, failed: bool = False) -> bool:
        """Whether the next call of that kind gets a line now; one that gets none is counted."""
        if not LOG.isEnabledFor(logging.INFO):
            return False
        now = self._clock()
        with self._lock:
            if now - self._second >= 1:
                self._second, self._written = now, [0, 0]
            if self._written[failed] >= self._most[failed]:
                self._left_out[failed] += 1
                return False
            self._written[failed] += 1
            return True

    def leave_out(self, calls: int) -> None:
        """Counts calls that went well and get no line."""
        with self._lock:
            self._left_out[False] += calls

    def write(self, call: Call, seconds: float) -> None:
        """Writes the line of a call that ended after so long, if it gets one."""
        failed = call.outcome != "OK"
        if self.takes(failed):
            self.write_taken(call, seconds)

    def write_taken(self, call: Call, seconds: float) -> None:
        """Writes the line of a call of which ``takes`` said that it gets one."""
        failed = call.outcome != "OK"
        with self._lock:
            left_out, self._left_out[failed] = self._left_out[failed], 0
        entry = {
            "time": round(time.time(), 3),
            "event": "call",
            "request_id": call.request_id,
            "method": call.method,
            "peer": call.peer,
            "users": call.users,
            "events": call.events,
            "ms": round(seconds * 1000, 3),
            "outcome": call.outcome,
        }
        if call.error:
            entry["error"] = call.error
        if left_out:
            entry["left_out"] = left_out
        LOG.log(logging.WARNING if failed else logging.INFO, json.dumps(entry))
