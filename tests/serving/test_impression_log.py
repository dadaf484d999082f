"""What was shown is logged beside the requests: bounded, counted, whole lines."""

import json
import time
from contextlib import contextmanager

import numpy as np
import pytest
from serving_helpers import T0, run_gateway, wait_for

from seqvault import SeqVault
from serving.gateway import impression_log
from serving.gateway.impression_log import ImpressionLog, Shown


def shown(user=1, items=3):
    return Shown(user, T0, 1, {}, np.arange(items), np.zeros(items, np.float32), {})


def lines(folder):
    return [
        json.loads(line)
        for path in sorted(folder.glob("impressions-*.jsonl"))
        for line in path.read_text().splitlines()
    ]


class Model:
    """Scores candidates by their place, the last one highest."""

    def predict(self, inputs, output, call):
        shape = inputs["candidate_item_id"].shape
        return 7, np.broadcast_to(np.arange(shape[1], dtype=np.float32), shape)

    def available_versions(self, timeout_seconds):
        return [7]

    def close(self):
        pass


def test_answered_requests_are_logged_as_they_were_shown(tmp_path, spec, store_path):
    log = ImpressionLog(tmp_path)
    log.start()
    gateway = contextmanager(run_gateway)
    with (
        SeqVault.open(str(store_path), read_only=True) as store,
        gateway(spec, store, Model(), impressions=log) as client,
    ):
        candidates = [{"item_id": item, "position": item + 1} for item in (4, 5, 6)]
        request = {"user_id": 9, "time_ms": T0, "candidates": candidates, "top_k": 2}
        assert client.rank(**request, context={"scenario": 3})[0] == 200
        assert client.rank(user_id=9, candidates=[])[0] == 400
        assert client.rank(user_id=8, candidates=[1])[0] == 200
        wait_for(lambda: log.logged == 3)
        page = client.call("GET", "/metrics")[1]
    log.close()
    first, second = lines(tmp_path)
    assert first.pop("request_id") != second["request_id"]
    assert first == {
        "user_id": 9,
        "time_ms": T0,
        "model_version": 7,
        "fields": {"scenario": 3},
        "item_id": [6, 5],
        "score": [2.0, 1.0],
        "candidate": {"position": [7, 6]},
    }
    assert second["user_id"] == 8 and second["time_ms"] > T0
    assert "laser_gateway_impressions_logged_total 3.0" in page
    assert "laser_gateway_impressions_dropped_total 0.0" in page


def test_what_has_no_room_is_dropped_and_counted(tmp_path):
    log = ImpressionLog(tmp_path, most_waiting=7)  # not started: nothing is written
    for user in range(4):
        log.add(shown(user))
    assert log.dropped == 6
    log.close()
    assert log.logged == 6
    assert [line["user_id"] for line in lines(tmp_path)] == [0, 1]
    assert len({line["request_id"] for line in lines(tmp_path)}) == 2


def test_large_files_are_followed_by_new_ones(tmp_path):
    log = ImpressionLog(tmp_path, file_bytes=1)
    log.start()
    for count in range(1, 4):
        log.add(shown())
        wait_for(lambda: log.logged == 3 * count)  # waited for here
    log.close()
    assert len(list(tmp_path.glob("impressions-*.jsonl"))) == 3
    assert len(lines(tmp_path)) == 3


class FullDisk:
    """A file that takes some bytes of a line and then no more."""

    def __init__(self, file):
        self.file = file

    def write(self, content):
        self.file.write(content[:10])
        self.file.flush()
        raise OSError(28, "No space left on device")

    def close(self):
        self.file.close()


def test_a_full_disk_costs_what_was_being_written_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(impression_log, "_REST_SECONDS", 0.1)
    log = ImpressionLog(tmp_path)
    log._file = FullDisk(log._file)
    log.start()
    log.add(shown(1))
    wait_for(lambda: log.dropped == 3)
    log.add(shown(2))
    wait_for(lambda: log.logged == 3)
    log.close()
    contents = sorted(path.read_bytes() for path in tmp_path.glob("impressions-*.jsonl"))
    assert [each.endswith(b"\n") for each in contents] == [False, True]
    assert json.loads(contents[1])["user_id"] == 2


def test_a_disk_that_stays_full_is_not_filled_with_files(tmp_path, monkeypatch):
    monkeypatch.setattr(impression_log, "_PAUSE_SECONDS", 0.01)
    log = ImpressionLog(tmp_path)
    opened = log._open_file

    def open_on_a_full_disk():
        opened()
        log._file = FullDisk(log._file)

    monkeypatch.setattr(log, "_open_file", open_on_a_full_disk)
    log._file = FullDisk(log._file)
    log.start()
    for _ in range(20):
        log.add(shown())
        time.sleep(0.02)
    assert len(list(tmp_path.iterdir())) == 1
    log.close()
    assert log.dropped == 60
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_that_is_full_at_the_end_is_told_and_ends_nothing_else(tmp_path, caplog):
    log = ImpressionLog(tmp_path)  # not started: all is left to its end
    log._file = FullDisk(log._file)
    for user in range(1500):
        log.add(shown(user))
    log.close()
    assert log.dropped == 4500
    assert "could not be logged: [Errno 28] No space left" in caplog.text


def test_a_folder_that_cannot_be_written_to_shows_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        ImpressionLog(tmp_path / "file" / "log")
