"""Lines while work goes on: what they say, and that they come."""

from __future__ import annotations

import time

from components.heartbeat import Done, describe, heartbeat, seconds_left
from components.seqvault_example_gen.join_progress import JoinProgress


def lines_of(seconds, **options):
    lines = []
    with heartbeat("work", lines.append, every=0.02, **options):
        time.sleep(seconds)
    return lines


def test_a_line_comes_every_few_seconds_and_none_afterwards():
    lines = lines_of(0.3, progress=lambda: Done(1, 4, "files"))
    assert 2 <= len(lines) <= 15
    assert all(line.startswith("work: 1 of 4 files, about ") for line in lines)
    assert all(line.endswith(" left") for line in lines)
    count = len(lines)
    time.sleep(0.1)
    assert len(lines) == count


def test_work_that_is_over_at_once_says_nothing():
    lines = []
    with heartbeat("work", lines.append, every=60):
        pass
    assert lines == []


def test_the_time_left_is_what_the_rest_takes_at_the_pace_so_far():
    assert seconds_left(30, 0.25) == 90
    assert seconds_left(30, 0) is None
    assert describe(30, Done(0, 4, "files")) == "0 of 4 files"
    assert describe(30, Done(4, 4, "files")) == "4 of 4 files, about 0 s left"
    assert describe(30, Done(5, 0, "files")) == "30 s"
    assert describe(30, None, expected=20) == "30 s"
    assert describe(300, None, expected=420) == "5 min, about 2 min left"


def test_the_join_tells_what_it_joined_of_what_it_found():
    progress = JoinProgress()
    progress.found(100)
    assert progress.read() is None
    progress.joined(25)
    assert progress.read() == Done(25, 100, "impressions")
    progress.reset()
    assert progress.read() is None
