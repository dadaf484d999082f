"""The error of dataset adapters."""


class DatasetError(ValueError):
    """A dataset that cannot be prepared: one line with what was found and what to do."""
