"""What ``laser-pipeline status`` says of runs that ended well, badly or not at all."""

from __future__ import annotations

import pytest

from tfx_pipeline.cli import main
from tfx_pipeline.results.past_runs import NodeRun, PipelineRun, read_runs
from tfx_pipeline.results.status import status_lines


def run(name, **states):
    nodes = {
        node: NodeRun(node, state, 5.0, {}, "interrupted" if state == "FAILED" else "")
        for node, state in states.items()
    }
    return PipelineRun("laser", name, nodes)


def said(*runs, is_running=False):
    return "\n".join(status_lines(runs, is_running))


def test_an_interrupted_run_says_why_and_what_to_do():
    text = said(run("one", SeqVaultExampleGen="COMPLETE", Trainer="FAILED"))
    assert "laser one: Trainer failed (interrupted)" in text
    assert "FAILED        5.0 s  interrupted" in text
    assert "run the same command again: it goes on" in text


def test_only_a_run_whose_process_lives_is_running():
    half = run("two", SeqVaultExampleGen="CACHED", Trainer="RUNNING")
    assert "laser two: running" in said(half, is_running=True)
    assert "run the same command" not in said(half, is_running=True)
    assert "laser two: killed" in said(half)
    assert "run the same command again" in said(half)
    # A run before the last one cannot be going on.
    assert "laser two: killed" in said(half, run("three", Trainer="RUNNING"), is_running=True)


@pytest.fixture
def store(tmp_path):
    import ml_metadata
    from ml_metadata.proto import metadata_store_pb2 as mlmd

    config = mlmd.ConnectionConfig()
    config.sqlite.filename_uri = str(tmp_path / "metadata.sqlite")
    config.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
    store = ml_metadata.MetadataStore(config)
    kinds = {}
    for kind in ("pipeline", "pipeline_run", "node"):
        kinds[kind] = store.put_context_type(mlmd.ContextType(name=kind))
    execution = store.put_execution_type(mlmd.ExecutionType(name="step"))

    def put(run_id, states):
        for node, state in states.items():
            contexts = [
                mlmd.Context(type_id=kinds[kind], name=name)
                for kind, name in (
                    ("pipeline", "laser"), ("pipeline_run", run_id), ("node", f"laser.{node}"),
                )
            ]  # fmt: skip
            made = mlmd.Execution(
                type_id=execution, last_known_state=mlmd.Execution.State.Value(state)
            )
            store.put_execution(made, [], contexts, reuse_context_if_already_exist=True)

    return store, put


def test_what_a_killed_run_left_running_is_published_as_failed(store, tmp_path, capsys):
    from tfx_pipeline.runners.unfinished import INTERRUPTED, KILLED, name_reason, publish_unfinished

    metadata, put = store
    put("first", {"Join": "COMPLETE", "Trainer": "RUNNING"})
    assert main(["status", "--work", str(tmp_path)]) == 0
    assert "laser first: killed" in capsys.readouterr().out
    assert publish_unfinished(metadata, KILLED) == 1
    assert publish_unfinished(metadata, KILLED) == 0
    put("second", {"Join": "CACHED", "Trainer": "FAILED"})
    name_reason(metadata, "second", INTERRUPTED)
    first, second = read_runs(tmp_path / "metadata.sqlite")
    assert first.problems[0] == f"Trainer failed ({KILLED})"
    assert second.problems[0] == "Trainer failed (interrupted)"
    assert [node.state for node in first.nodes.values()] == ["COMPLETE", "FAILED"]
    assert main(["status", "--work", str(tmp_path)]) == 0
    assert "Trainer failed (interrupted)" in capsys.readouterr().out


def test_watching_shows_each_change_until_the_run_ends(tmp_path, monkeypatch, capsys):
    states = [
        run("one", Join="RUNNING"),
        run("one", Join="RUNNING"),  # nothing new: nothing is shown
        run("one", Join="COMPLETE", Trainer="RUNNING"),
        run("one", Join="COMPLETE", Trainer="FAILED"),
    ]
    running = [True, True, True, False]
    (tmp_path / "metadata.sqlite").write_bytes(b"")
    monkeypatch.setattr("tfx_pipeline.cli._WATCH_SECONDS", 0)
    monkeypatch.setattr(
        "tfx_pipeline.runners.work_lock.is_locked", lambda work: running[-len(states)]
    )
    monkeypatch.setattr(
        "tfx_pipeline.results.past_runs.read_runs", lambda database: [states.pop(0)]
    )
    assert main(["status", "--work", str(tmp_path), "--watch"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("laser one: running") == 2
    assert shown.index("Trainer                  RUNNING") < shown.index(
        "laser one: Trainer failed"
    )
    assert "run the same command again" in shown and states == []


def test_watching_a_run_that_has_just_begun_waits_for_it(tmp_path, monkeypatch, capsys):
    running = [True, True, False]
    monkeypatch.setattr("tfx_pipeline.cli._WATCH_SECONDS", 0)
    monkeypatch.setattr("tfx_pipeline.runners.work_lock.is_locked", lambda work: running.pop(0))
    assert main(["status", "--work", str(tmp_path), "--watch"]) == 1  # it ended before it wrote
    assert "nothing was run there yet" in capsys.readouterr().err
