"""Shows the doctests of docstrings as code on the API pages, also where no section holds them."""

from __future__ import annotations

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"(?m)^([ \t]*)>>> .*(?:\n\1\S.*)*")


class FenceDoctests(griffe.Extension):
    """Puts every run of ``>>>`` lines with their output into a fence."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fence(obj.docstring.value)


def fence(text: str) -> str:
    """The text with doctests fenced.

    Example:
        >>> print(fence("Text.\\n\\n    >>> 1 + 1\\n    2\\n\\nMore."))
        Text.
        <BLANKLINE>
            ```pycon
            >>> 1 + 1
            2
            ```
        <BLANKLINE>
        More.
    """
    return _DOCTEST.sub(lambda m: f"{m[1]}```pycon\n{m[0]}\n{m[1]}```", text)
