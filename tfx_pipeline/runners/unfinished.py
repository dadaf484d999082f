"""Publishes executions that an interrupted run left unfinished as failed."""

from __future__ import annotations

from typing import Any

from ml_metadata.proto import metadata_store_pb2 as mlmd

REASON = "reason"
KILLED = "the process ended without a word: killed, or the machine went down"
INTERRUPTED = "interrupted"
_OPEN = (mlmd.Execution.NEW, mlmd.Execution.RUNNING)


def publish_unfinished(store: Any, reason: str) -> int:
    """Mark every execution that still counts as running as failed; call it under the lock.

    Args:
        store: ML Metadata's store.
        reason: Why they did not finish; ``status`` shows it.

    Returns:
        How many there were.
    """
    unfinished = [each for each in store.get_executions() if each.last_known_state in _OPEN]
    for execution in unfinished:
        execution.last_known_state = mlmd.Execution.FAILED
        execution.custom_properties[REASON].string_value = reason
    if unfinished:
        store.put_executions(unfinished)
    return len(unfinished)


def name_reason(store: Any, run_id: str, reason: str) -> None:
    """Record why a run's executions failed."""
    context = store.get_context_by_type_and_name("pipeline_run", run_id)
    if context is None:
        return
    failed = [
        each
        for each in store.get_executions_by_context(context.id)
        if each.last_known_state == mlmd.Execution.FAILED and REASON not in each.custom_properties
    ]
    for execution in failed:
        execution.custom_properties[REASON].string_value = reason
    if failed:
        store.put_executions(failed)
