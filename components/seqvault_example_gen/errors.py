"""Errors of the example generation: one clear line saying what was found and what to do."""

from __future__ import annotations


class ImpressionsError(ValueError):
    """The impressions cannot be turned into Examples: a file, a column or too many bad rows."""
