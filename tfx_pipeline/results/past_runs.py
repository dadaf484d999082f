"""Past runs, read from ML Metadata without importing TFX or TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfx_pipeline.errors import PipelineError


@dataclass(frozen=True)
class NodeRun:
    """What one component did in one run.

    Attributes:
        state: ``COMPLETE``, ``CACHED``, ``FAILED``, ``RUNNING``, ...
        seconds: How long it took; what a cached result took is not repeated.
        outputs: By output name, the artifacts as (uri, properties).
        reason: Why it failed, "" if it did not.
    """

    node: str
    state: str
    seconds: float
    outputs: dict[str, list[tuple[str, dict[str, Any]]]]
    reason: str = ""

    def output(self, name: str) -> tuple[str, dict[str, Any]]:
        """The only artifact of an output."""
        (artifact,) = self.outputs[name]
        return artifact


@dataclass(frozen=True)
class PipelineRun:
    """One run of a pipeline; nodes are in the order in which they ran."""

    pipeline: str
    run_id: str
    nodes: dict[str, NodeRun]

    @property
    def problems(self) -> list[str]:
        """Why nothing was pushed, one line each; empty if a model was."""
        problems = [
            f"{node.node} {node.state.lower()}" + (f" ({node.reason})" if node.reason else "")
            for node in self.nodes.values()
            if node.state not in ("COMPLETE", "CACHED")
        ]
        for name, output, what in _BLESSINGS:
            if self._produced(name, output):
                _, properties = self.nodes[name].output(output)
                if properties.get("blessed") != 1:
                    reason = properties.get("reason")
                    problems.append(what + (f": {reason}" if reason else ""))
        if not problems and self.pushed is None:
            problems.append("Pusher pushed nothing")
        return problems

    @property
    def pushed(self) -> str | None:
        """Where the model was pushed to, or None."""
        return self._pushed_by("Pusher")

    @property
    def pushed_recall(self) -> str | None:
        """Where the recall model was pushed to, or None."""
        return self._pushed_by("RecallPusher")

    def _pushed_by(self, node: str) -> str | None:
        if not self._produced(node, "pushed_model"):
            return None
        _, properties = self.nodes[node].output("pushed_model")
        destination = properties.get("pushed_destination")
        return str(destination) if properties.get("pushed") == 1 else None

    def _produced(self, node: str, output: str) -> bool:
        return node in self.nodes and bool(self.nodes[node].outputs.get(output))


_BLESSINGS = (
    ("Evaluator", "blessing", "Evaluator did not bless the model"),
    ("ServingCheck", "blessing", "ServingCheck did not bless the model"),
    ("RecallGate", "blessing", "RecallGate did not bless the recall model"),
)


def read_runs(database: Path) -> list[PipelineRun]:
    """All runs that the database knows, oldest first.

    Args:
        database: The SQLite file of ML Metadata.

    Raises:
        PipelineError: The file does not exist.
    """
    if not database.is_file():
        raise PipelineError(f"{database} does not exist: nothing was run there yet")
    import ml_metadata
    from ml_metadata.proto import metadata_store_pb2

    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = str(database)
    config.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READONLY
    store = ml_metadata.MetadataStore(config)
    try:
        contexts = store.get_contexts_by_type("pipeline_run")
    except ml_metadata.errors.NotFoundError:
        return []
    runs = []
    for context in sorted(contexts, key=lambda context: int(context.id)):
        executions = store.get_executions_by_context(context.id)
        nodes = [_node_run(store, each) for each in sorted(executions, key=lambda each: each.id)]
        if nodes:
            pipeline = nodes[0][0]
            runs.append(PipelineRun(pipeline, context.name, {run.node: run for _, run in nodes}))
    return runs


def _node_run(store: Any, execution: Any) -> tuple[str, NodeRun]:
    from ml_metadata.proto import metadata_store_pb2

    names = {
        context.type: context.name for context in store.get_contexts_by_execution(execution.id)
    }
    pipeline = names["pipeline"]
    events = [
        event
        for event in store.get_events_by_execution_ids([execution.id])
        if event.type == metadata_store_pb2.Event.OUTPUT
    ]
    artifacts = {
        artifact.id: artifact
        for artifact in store.get_artifacts_by_id([event.artifact_id for event in events])
    }
    outputs: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for event in events:
        key = next((step.key for step in event.path.steps if step.key), "")
        artifact = artifacts[event.artifact_id]
        outputs.setdefault(key, []).append((artifact.uri, _properties(artifact)))
    state = metadata_store_pb2.Execution.State.Name(execution.last_known_state)
    span = execution.last_update_time_since_epoch - execution.create_time_since_epoch
    node = names["node"].removeprefix(f"{pipeline}.")
    reason = execution.custom_properties["reason"].string_value
    return pipeline, NodeRun(node, state, span / 1000, outputs, reason)


def _properties(artifact: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("value"))
        for properties in (artifact.properties, artifact.custom_properties)
        for name, value in properties.items()
    }
