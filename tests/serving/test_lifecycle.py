"""Versions on disk and in memory, against the contract's rows L (and S2)."""

import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from serving_helpers import save_basic, wait_for

from serving.model_server.model_manager import ModelManager
from serving.model_server.saved_model import SavedModel
from serving.model_server.server_config import read_config, single_model
from serving.model_server.status import ServingError
from serving.model_server.versions import ModelConfig, VersionPolicy, list_versions


class Fake:
    """A servable that is its directory's content; ``bad`` does not load."""

    def __init__(self, path: Path) -> None:
        file = path / "saved_model.pb"
        if not file.exists():
            raise ServingError("NOT_FOUND", f"{path} does not appear to contain a SavedModel")
        self.content = file.read_text()
        self.closed = False
        if self.content == "bad":
            raise ServingError("DATA_LOSS", "bad bytes")

    def close(self) -> None:
        self.closed = True


def push(base: Path, name: str, content: str) -> None:
    temporary = base / f"tmp-{name}"
    temporary.mkdir(parents=True)
    (temporary / "saved_model.pb").write_text(content)
    temporary.rename(base / name)


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "m"
    path.mkdir()
    return path


@pytest.fixture
def make(base):
    """``make(policy, ...)`` -> a started manager of the model ``m``."""
    managers = []

    def make(policy=VersionPolicy(), models=None, load=Fake, **settings):
        settings = {"poll_seconds": 0.02, "max_retries": 0, "retry_seconds": 0.02, **settings}
        manager = ModelManager(models or [ModelConfig("m", base, policy)], load, **settings)
        managers.append(manager)
        manager.start()
        return manager

    yield make
    for manager in managers:
        manager.stop()


def content(manager, version=None, name="m"):
    with manager.use(name, version) as (_, servable):
        return servable.content


def states(manager, name="m"):
    return {status.version: status.state for status in manager.statuses(name)}


def test_l1_numbers_of_directories(base, caplog):
    for name in ("00000123", "-5", "abc", "12x", "9223372036854775808", "7", "007"):
        (base / name).mkdir()
    (base / "8").write_text("a file")
    with caplog.at_level(logging.WARNING):
        found = list_versions(base)
    assert {number: path.name for number, path in found.items()} == {
        123: "00000123",
        -5: "-5",
        7: "7",  # later than 007 in name order
    }
    assert "Duplicate version directories detected" in caplog.text


def test_l2_polling_once(base, make):
    push(base, "1", "one")
    manager = make(poll_seconds=0)
    assert manager.wait_until_available(10)
    push(base, "2", "two")
    assert not threading.Event().wait(0.2)
    assert states(manager) == {1: "AVAILABLE"}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (VersionPolicy(), [3]),
        (VersionPolicy(latest=2), [3, 2]),
        (VersionPolicy(all=True), [3, 2, 1]),
        (VersionPolicy(latest=0, specific=(1, 9)), [1]),
    ],
)
def test_l3_policies(base, make, policy, expected):
    for version in "123":
        push(base, version, version)
    manager = make(policy)
    assert manager.wait_until_available(10)
    wait_for(lambda: list(states(manager).values()) == ["AVAILABLE"] * len(expected))
    assert [status.version for status in manager.statuses("m")] == expected


def test_l3_missing_specific_version_is_named(base, make, caplog):
    push(base, "1", "one")
    with caplog.at_level(logging.WARNING):
        assert make(VersionPolicy(latest=0, specific=(1, 9))).wait_until_available(10)
    assert "Version 9 of servable m, which was requested" in caplog.text


def test_l4_waits_for_a_first_version(base, make, caplog):
    with caplog.at_level(logging.WARNING):
        manager = make()
        assert not manager.wait_until_available(0.2)
        assert f"No versions of servable m found under base path {base}" in caplog.text
        push(base, "1", "one")
        assert manager.wait_until_available(10)


def test_l4_waits_for_the_base_path(base, make, caplog):
    base.rmdir()
    with caplog.at_level(logging.WARNING):
        manager = make()
        assert not manager.wait_until_available(0.2)
    assert f"Could not find base path {base} for servable m" in caplog.text
    push(base, "1", "one")
    assert manager.wait_until_available(10)


def test_l5_a_request_finishes_on_the_version_it_began_on(base, make):
    push(base, "1", "one")
    manager = make()
    assert manager.wait_until_available(10)
    with manager.use("m") as (version, held):
        push(base, "2", "two")
        wait_for(lambda: states(manager) == {2: "AVAILABLE", 1: "UNLOADING"})
        assert (version, held.content, held.closed) == (1, "one", False)
        assert content(manager) == "two"
        with pytest.raises(ServingError, match=r"Specific\(m, 1\)"):
            content(manager, 1)
    wait_for(lambda: states(manager) == {2: "AVAILABLE", 1: "END"})
    assert held.closed


def test_l6_a_version_that_does_not_load_changes_nothing(base, make):
    push(base, "1", "one")
    attempts = []

    def load(path):
        attempts.append(path.name)
        return Fake(path)

    manager = make(load=load, max_retries=2)
    assert manager.wait_until_available(10)
    push(base, "2", "bad")
    wait_for(lambda: states(manager).get(2) == "END")
    assert attempts.count("2") == 3
    failed = manager.statuses("m", 2)[0]
    assert (failed.error.code, failed.error.message) == ("DATA_LOSS", "bad bytes")
    assert content(manager) == "one"
    # The number is burnt: not even repaired files, moved away and back, are tried again.
    (base / "2" / "saved_model.pb").write_text("good")
    (base / "2").rename(base / "away")
    wait_for(lambda: manager._aspired["m"] == [1])
    (base / "away").rename(base / "2")
    wait_for(lambda: manager._aspired["m"] == [2])
    push(base, "3", "three")
    wait_for(lambda: states(manager) == {3: "AVAILABLE", 2: "END", 1: "END"})
    assert attempts.count("2") == 3


def test_s2_state_while_retries_last(base, make):
    push(base, "1", "bad")
    manager = make(max_retries=5, retry_seconds=60)
    wait_for(lambda: manager._versions["m"] and states(manager) == {1: "LOADING"})
    assert manager.statuses("m", 1)[0].error is None


def test_l7_the_newest_version_must_load_at_start(base, make):
    push(base, "1", "one")
    push(base, "2", "bad")
    with pytest.raises(ServingError) as caught:
        make().wait_until_available(10)
    assert str(caught.value) == (
        "UNKNOWN: 1 servable(s) did not become available: "
        "{{{name: m version: 2} due to error: DATA_LOSS: bad bytes}, }"
    )


def test_l8_rollback_by_removing_the_newest(base, make):
    for version in "12":
        push(base, version, version)
    manager = make()
    assert manager.wait_until_available(10)
    shutil.rmtree(base / "2")
    wait_for(lambda: states(manager).get(1) == "AVAILABLE" and states(manager)[2] == "END")
    assert content(manager) == "1"
    push(base, "2", "again")
    wait_for(lambda: states(manager)[2] == "AVAILABLE")
    assert content(manager) == "again"


def test_l8_no_versions_left(base, make):
    push(base, "1", "one")
    manager = make()
    assert manager.wait_until_available(10)
    shutil.rmtree(base / "1")
    wait_for(lambda: states(manager) == {1: "END"})
    with pytest.raises(ServingError, match=r"NOT_FOUND.*Latest\(m\)"):
        content(manager)


def test_l10_a_half_written_version_heals_before_the_retries_run_out(base, make):
    push(base, "1", "one")
    manager = make(max_retries=1000)
    assert manager.wait_until_available(10)
    (base / "2").mkdir()
    wait_for(lambda: states(manager).get(2) == "LOADING")
    assert content(manager) == "one"
    push(base / "2", "x", "two")
    (base / "2" / "x" / "saved_model.pb").rename(base / "2" / "saved_model.pb")
    wait_for(lambda: states(manager) == {2: "AVAILABLE", 1: "END"})


def test_l17_a_base_path_that_vanishes(base, make, tmp_path):
    other = tmp_path / "other"
    push(base, "1", "one")
    push(other, "1", "other one")
    manager = make(models=[ModelConfig("m", base), ModelConfig("other", other)])
    assert manager.wait_until_available(10)
    shutil.rmtree(base)
    push(other, "2", "other two")
    # Unlike TensorFlow Serving, whose discovery stops at the first error: see docs/serving.md.
    wait_for(lambda: states(manager, "other").get(2) == "AVAILABLE")
    assert content(manager) == "one"
    assert content(manager, name="other") == "other two"


def test_l11_labels(base, make):
    for version in "12":
        push(base, version, version)
    labels = {"stable": 1, "canary": 2, "gone": 9}
    manager = make(models=[ModelConfig("m", base, VersionPolicy(all=True), labels)])
    assert manager.wait_until_available(10)
    wait_for(lambda: states(manager) == {1: "AVAILABLE", 2: "AVAILABLE"})
    for label, expected in (("stable", "1"), ("canary", "2")):
        with manager.use("m", label=label) as (version, servable):
            assert (str(version), servable.content) == (expected, expected)
    with (
        pytest.raises(ServingError, match=r"NOT_FOUND.*Specific\(m, 9\)"),
        manager.use("m", label="gone"),
    ):
        pass
    for name in ("m", "other"):
        with (
            pytest.raises(ServingError, match="Unrecognized servable version label: l"),
            manager.use(name, label="l"),
        ):
            pass


def test_a_slow_load_does_not_hold_up_other_models(base, make, tmp_path):
    slow = tmp_path / "slow"
    push(base, "1", "one")
    push(slow, "1", "slow one")
    held, finish = threading.Event(), threading.Event()
    loading: list[str] = []

    def load(path):
        loading.append(threading.current_thread().name)
        if path == slow / "2":
            held.set()
            assert finish.wait(30)
        return Fake(path)

    manager = make(models=[ModelConfig("m", base), ModelConfig("slow", slow)], load=load)
    assert manager.wait_until_available(10)
    push(slow, "2", "slow two")
    assert held.wait(10)
    push(base, "2", "two")
    wait_for(lambda: states(manager).get(2) == "AVAILABLE", 10)
    assert states(manager, "slow") == {1: "AVAILABLE", 2: "LOADING"}
    finish.set()
    wait_for(lambda: states(manager, "slow").get(2) == "AVAILABLE")
    assert set(loading) == {"loader-m", "loader-slow"}


@pytest.mark.parametrize("fault", [OSError(24, "too many open files"), MemoryError(), KeyError(1)])
def test_no_exception_ends_discovery_or_loading(base, make, monkeypatch, fault):
    from serving.model_server import model_manager

    push(base, "1", "one")
    manager = make()
    assert manager.wait_until_available(10)
    faults = []

    def fail(*_):
        faults.append(1)
        raise fault

    for where, name in ((model_manager, "list_versions"), (manager, "_close_unused")):
        with monkeypatch.context() as patched:
            patched.setattr(where, name, fail)
            faults.clear()
            wait_for(lambda: len(faults) > 3)
    push(base, "2", "two")
    wait_for(lambda: states(manager) == {2: "AVAILABLE", 1: "END"})
    assert manager.thread_failures > 0


def test_l10_l16_what_is_no_saved_model(tmp_path):
    with pytest.raises(ServingError, match="does not appear to contain a SavedModel bundle") as e:
        SavedModel(tmp_path)
    assert e.value.code == "NOT_FOUND"
    (tmp_path / "saved_model.pb").write_bytes(b"\xff not a proto")
    with pytest.raises(ServingError):
        SavedModel(tmp_path)


def test_half_written_variables_are_refused(basic_model, tmp_path):
    copy = tmp_path / "1"
    shutil.copytree(basic_model / "00000123", copy)
    data = next((copy / "variables").glob("variables.data-*"))
    data.write_bytes(data.read_bytes()[:5])
    with pytest.raises(ServingError):
        SavedModel(copy)


def test_tags_that_the_model_does_not_have(basic_model):
    with pytest.raises(ServingError, match=r"matching supplied tags: \{ gpu \}"):
        SavedModel(basic_model / "00000123", tags=("gpu",))


def test_l5_hot_swap_under_load_loses_no_call(tmp_path):
    """Real models: every call is answered, by one version's numbers, and versions only rise."""
    base = tmp_path / "models"
    base.mkdir()
    save_basic(base / "1", scale=1.0)
    manager = ModelManager([ModelConfig("m", base)], SavedModel, poll_seconds=0.02)
    manager.start()
    assert manager.wait_until_available(60)
    stop = threading.Event()
    seen: list[list[int]] = [[] for _ in range(3)]
    wrong: list[object] = []

    def ask(mine):
        row = np.ones((1, 2), np.float32)
        while not stop.is_set():
            try:
                with manager.use("m") as (version, model):
                    signature = model.signatures["serving_default"]
                    (y,) = model.run(
                        {signature.inputs["x"].name: row}, [signature.outputs["y"].name]
                    )
                if y[0, 0] != 2.0 * version:
                    wrong.append((version, y))
                mine.append(version)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for version in (2, 3):
        save_basic(base / str(version), scale=float(version))
        wait_for(lambda v=version: all(mine and mine[-1] == v for mine in seen), 60)
    stop.set()
    for thread in threads:
        thread.join()
    manager.stop()
    assert not wrong
    for mine in seen:
        assert mine == sorted(mine)
        assert set(mine) == {1, 2, 3}


# Configuration: L3, L13, L14, L19


def write(tmp_path, text):
    path = tmp_path / "models.config"
    path.write_text(text)
    return path


def test_l14_config_file(tmp_path):
    path = write(
        tmp_path,
        """
        model_config_list {
          config { name: "a" base_path: "/models/a" model_platform: "tensorflow" }
          config {
            name: "b" base_path: "/models/b" model_platform: "tensorflow"
            model_version_policy { specific { versions: 3 versions: 5 } }
          }
          config {
            name: "c" base_path: "/models/c" model_platform: "tensorflow"
            model_version_policy { all {} }
          }
        }
        """,
    )
    a, b, c = read_config(path)
    assert a == ModelConfig("a", Path("/models/a"))
    assert b.policy == VersionPolicy(latest=0, specific=(3, 5))
    assert c.policy.all


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list { x", "Error parsing text-format tensorflow.serving.ModelServerConfig"),
        ("", "expected a model_config_list"),
        ('model_config_list { config { name: "a" base_path: "/a" } }', "model_platform"),
        (
            'model_config_list { config { name: "a" base_path: "a" '
            'model_platform: "tensorflow" } }',
            "to have an absolute path or URI",
        ),
        (
            "model_config_list {"
            + 'config { name: "a" base_path: "/a" model_platform: "tensorflow" }' * 2
            + "}",
            "Illegal to list model a multiple times in config list",
        ),
    ],
)
def test_l13_g19_bad_config(tmp_path, text, message):
    with pytest.raises(ServingError, match=message):
        read_config(write(tmp_path, text))


def test_l11_labels_are_read(tmp_path):
    (model,) = read_config(
        write(
            tmp_path,
            """
            model_config_list { config {
              name: "a" base_path: "/models/a" model_platform: "tensorflow"
              version_labels { key: "stable" value: 3 }
              version_labels { key: "canary" value: 5 }
            } }
            """,
        )
    )
    assert model.labels == {"stable": 3, "canary": 5}


def test_base_path_must_be_absolute():
    with pytest.raises(ServingError, match="absolute path"):
        single_model("m", "models/m")
