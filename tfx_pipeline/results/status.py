"""Past runs as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tfx_pipeline.results.past_runs import PipelineRun

_AGAIN = "run the same command again: it goes on from what is done and from the last checkpoint"


def status_lines(runs: Sequence[PipelineRun], is_running: bool) -> Iterator[str]:
    """What each run did, oldest first.

    Args:
        runs: From ``read_runs``.
        is_running: Whether a run holds the work folder: the last one is it. Otherwise a node that
            still counts as running belongs to a process that was killed.
    """
    for run in runs:
        is_last = run is runs[-1]
        unfinished = any(node.state in ("NEW", "RUNNING") for node in run.nodes.values())
        if is_last and is_running:
            outcome = "running"
        elif unfinished:
            outcome = "killed"
        else:
            outcome = f"pushed {run.pushed}" if run.pushed else "; ".join(run.problems)
        yield f"{run.pipeline} {run.run_id}: {outcome}"
        for node in run.nodes.values():
            yield "  " + _node_line(node.node, node.state, node.seconds, node.reason)
        failed = unfinished or any(node.state == "FAILED" for node in run.nodes.values())
        if is_last and failed and not is_running:
            yield f"  {_AGAIN}"


def _node_line(name: str, state: str, seconds: float, reason: str) -> str:
    took = "" if state in ("CACHED", "NEW", "RUNNING") else f"{seconds:8.1f} s"
    return f"{name:24s} {state:9s}{took}" + (f"  {reason}" if reason else "")
