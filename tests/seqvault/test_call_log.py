"""The log of calls: so many lines a second, and told how many were left out."""

import json

from seqvault.service.call import Call
from seqvault.service.call_log import CallLog


def test_lines_are_bounded_by_the_second_and_say_what_was_left_out(caplog):
    now = [10.0]
    log = CallLog(lines=2, failures=3, clock=lambda: now[0])
    with caplog.at_level("INFO", "seqvault.calls"):
        for second in range(2):
            now[0] += second
            for number in range(5):
                log.write(Call("Read", f"{second}-{number}", "here"), 0.001)
                log.write(Call("Read", f"{second}-{number}", "here", outcome="INTERNAL"), 0.001)
        log.leave_out(7)
        now[0] += 1
        log.write(Call("Read", "last", "here"), 0.001)
    lines = [json.loads(record.message) for record in caplog.records]
    fine = [(line["request_id"], line.get("left_out")) for line in lines if line["outcome"] == "OK"]
    assert fine == [("0-0", None), ("0-1", None), ("1-0", 3), ("1-1", None), ("last", 10)]
    failed = [line.get("left_out") for line in lines if line["outcome"] == "INTERNAL"]
    assert failed == [None, None, None, 2, None, None]
