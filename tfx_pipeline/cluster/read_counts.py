"""Reads descriptions like ``local:ps=2,workers=2``."""

from __future__ import annotations

from collections.abc import Mapping

from tfx_pipeline.cluster.exit_codes import EXIT_BAD_CLUSTER
from tfx_pipeline.errors import ClusterError

_REQUIRED = {"ps": "parameter servers", "workers": "workers"}


def read_counts(text: str, kind: str, largest: Mapping[str, int], form: str) -> dict[str, int]:
    """The numbers of a description, of which ``ps`` and ``workers`` must be there.

    Args:
        text: The description.
        kind: What must stand before the colon.
        largest: The parts that there may be, and the largest number of each.
        form: The right form, for errors.

    Raises:
        ClusterError: Says what does not fit.
    """

    def bad(why: str) -> ClusterError:
        return ClusterError(f"cluster {text!r}: {why}; give {form}", EXIT_BAD_CLUSTER)

    begins, separator, rest = text.partition(":")
    if begins != kind or not separator:
        raise bad(f"it should begin with `{kind}:`")
    given: dict[str, int] = {}
    for part in filter(None, rest.split(",")):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in largest:
            raise bad(f"it has no part {name!r}")
        if name in given:
            raise bad(f"{name} is given twice")
        least = 1 if name in _REQUIRED else 0
        is_number = number.isascii() and number.isdigit()
        if not (is_number and least <= int(number) <= largest[name]):
            raise bad(f"{name} is {number!r}, not a number from {least} to {largest[name]}")
        given[name] = int(number)
    for name, role in _REQUIRED.items():
        if name not in given:
            raise bad(f"it has no {role}")
    return given
