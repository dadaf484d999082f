"""Errors of the pipeline: one clear line saying what was found and what to do."""

from __future__ import annotations


class PipelineError(Exception):
    """A run that cannot start, or ended without its result."""


class DatasetError(ValueError):
    """A dataset that cannot be prepared: one line with what was found and what to do."""


class SettingsError(PipelineError, ValueError):
    """A setting that is unknown, missing or does not fit: one line with all of them."""


class ClusterError(PipelineError, ValueError):
    """A training cluster that is described wrongly, whose tasks do not answer, or that failed.

    Args:
        message: What was found and what to do.
        exit_code: Of the process that ends with it, see ``tfx_pipeline.cluster.exit_codes``.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class OtherModelError(PipelineError, ValueError):
    """A training that cannot go on from what another model or feature spec left."""

    exit_code = 65  # as ``tfx_pipeline.cluster.exit_codes.EXIT_OTHER_RUN``


class NotPushedError(PipelineError):
    """A run that ended well but for its model, which did not pass a gate."""


class ServerLostError(PipelineError):
    """A parameter server went away while it was needed; trying again may help."""
