"""The thread that merges outlives whatever a merge raises, and tells how it goes."""

import errno
import logging
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from seqvault import SeqVault, errors
from seqvault.disk.files import Files
from seqvault.merge import background_merge
from seqvault.merge.background_merge import BackgroundMerge
from seqvault.service.server import Server
from seqvault.testing.random_workload import NOW, SCHEMA
from seqvault.warm_up import warm_up
from seqvault.write import group_commit


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Kernels that compile amid a call would take longer than tests wait for it."""
    warm_up()


def events(count: int) -> dict[str, np.ndarray]:
    return {
        "user_id": np.full(count, 1),
        "timestamp": NOW + np.arange(count),
        "item_id": np.arange(count),
        "action": np.zeros(count, np.int8),
    }


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


class FailingFiles(Files):
    """Refuses to make segment files for as long as ``code`` says so."""

    code = 0

    def create(self, path: str) -> int:
        if self.code and "/segments/" in path:
            raise OSError(self.code, "injected")
        return super().create(path)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ENOSPC, errno.EACCES])
def test_merging_goes_on_after_an_error_of_the_disk(tmp_path, code, caplog):
    files = FailingFiles()
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=files) as vault:
        vault.append(events(600))
        files.code = code
        with caplog.at_level(logging.ERROR, "seqvault.merge"):
            merge = BackgroundMerge(vault, 0.01, first_pause=0.01)
            wait_for(lambda: merge.failures >= 3)
        assert len(caplog.records) == 1  # the same one again is not logged
        assert merge.failing_seconds > 0
        vault.append(events(10))  # appends go on
        files.code = 0
        wait_for(lambda: vault.events_in_log == 0)
        wait_for(lambda: merge.failing_seconds == 0)
        merge.stop()
        assert vault.read([1], before=None, last_n=1000).lengths[0] == 610


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a bug"), OSError(errno.EIO, "x")])
def test_merging_goes_on_after_any_exception(tmp_path, monkeypatch, error):
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        vault.append(events(600))
        merge_of, raised = SeqVault.merge, []

        def failing(self, *arguments, **named):
            if len(raised) < 3:
                raised.append(error)
                raise error
            return merge_of(self, *arguments, **named)

        monkeypatch.setattr(SeqVault, "merge", failing)
        merge = BackgroundMerge(vault, 0.01, first_pause=0.01)
        wait_for(lambda: vault.events_in_log == 0)
        merge.stop()
        assert merge.failures == 3


def test_the_pause_after_failures_grows_and_is_bounded(tmp_path):
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        merge = BackgroundMerge(vault, 0.0, first_pause=1.0)
        pauses = [merge._failed(OSError(errno.EMFILE, "injected")) for _ in range(40)]
        rough = [2.0**k for k in range(6)]
        for pause, about in zip(pauses, rough, strict=False):
            assert 0.7 * about < pause < 1.3 * about
        most = background_merge.LONGEST_PAUSE * (1 + background_merge.JITTER)
        assert max(pauses) <= most and pauses[-1] > most / 2


def test_the_thread_ends_with_the_store(tmp_path):
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    vault.append(events(600))
    merge = BackgroundMerge(vault, 0.01)
    vault.close()
    merge.stop()
    assert not [t for t in threading.enumerate() if t.name == "seqvault-merge"]


def test_health_turns_when_merging_has_failed_for_a_while_and_back(tmp_path, monkeypatch):
    monkeypatch.setattr(background_merge, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(
        BackgroundMerge.__init__, "__defaults__", (0.01, 0.05, lambda healthy: None)
    )
    files = FailingFiles()
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=files)
    vault.append(events(600))
    files.code = errno.EMFILE
    with Server(vault, merge_seconds=0.01) as server:
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        check = health_pb2_grpc.HealthStub(channel).Check

        def status() -> int:
            return check(health_pb2.HealthCheckRequest(), timeout=10).status

        wait_for(lambda: status() == health_pb2.HealthCheckResponse.NOT_SERVING)
        assert "seqvault_merge_failures_total 0" not in server.metrics_text()
        assert vault.read([1], before=None, last_n=1).lengths[0] == 1
        files.code = 0
        wait_for(lambda: status() == health_pb2.HealthCheckResponse.SERVING)
        channel.close()


def test_an_append_beyond_the_bound_of_the_log_says_why_and_to_retry(tmp_path, monkeypatch):
    monkeypatch.setattr(group_commit, "LOG_EVENTS", 100)
    files = FailingFiles()
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=files) as vault:
        vault.append(events(90))
        files.code = errno.EMFILE
        with pytest.raises(OSError, match="injected"):
            vault.merge()
        with pytest.raises(
            errors.LimitError, match=r"last merge failed \(OSError.*injected.*retry"
        ):
            vault.append(events(20))
        files.code = 0
        vault.merge()
        assert vault.append(events(20)) == 20
