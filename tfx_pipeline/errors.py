"""Errors of the pipeline: one clear line saying what was found and what to do."""

from __future__ import annotations


class PipelineError(Exception):
    """A run that cannot start, or ended without its result."""


class DatasetError(ValueError):
    """A dataset that cannot be prepared: one line with what was found and what to do."""


class SettingsError(PipelineError, ValueError):
    """A setting that is unknown, missing or does not fit: one line with all of them."""


class ClusterError(PipelineError, ValueError):
    """A training cluster that TF_CONFIG describes wrongly, or whose tasks do not answer."""


class ServerLostError(PipelineError):
    """A parameter server went away while it was needed; trying again may help."""
