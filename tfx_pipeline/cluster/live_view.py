"""All roles of a cluster at a glance: a table that a terminal redraws, a file for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class RoleState:
    """What the view shows of one role.

    Attributes:
        role: ``chief:0``, ``ps:1``, ...
        address: Of its server.
        pid: Its process; None before the first start.
        state: ``running``, or how it ended.
        restarts: How often it was started again.
        cores: Processor time it took, in cores.
        memory: Resident bytes.
        last_line: The last that it printed.
    """

    role: str
    address: str
    pid: int | None
    state: str
    restarts: int
    cores: float
    memory: int
    last_line: str


class LiveView:
    """Shows lines as they come, and below them the table of the roles.

    Only a terminal gets the table: a log or a pipe gets the lines alone. ``cluster.json`` always
    holds the table.

    Args:
        folder: Where ``cluster.json`` lies.
        output: Where to print.
    """

    def __init__(self, folder: Path, output: TextIO | None = None) -> None:
        self._file = folder / "cluster.json"
        self._output = sys.stdout if output is None else output
        self._is_terminal = self._output.isatty()
        self._drawn = 0

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self._clear()
        print(line, file=self._output, flush=True)

    def show(self, roles: Sequence[RoleState]) -> None:
        """Show the roles as they are now."""
        fresh = self._file.with_suffix(".tmp")
        fresh.write_text(json.dumps([asdict(role) for role in roles]), encoding="utf-8")
        fresh.replace(self._file)
        if self._is_terminal:
            self._clear()
            lines = table(roles)
            print("\n".join(lines), file=self._output, flush=True)
            self._drawn = len(lines)

    def close(self) -> None:
        """Leave the table as it is."""
        self._drawn = 0

    def _clear(self) -> None:
        if self._drawn:
            print(f"\033[{self._drawn}A\033[J", end="", file=self._output)
            self._drawn = 0


def table(roles: Sequence[RoleState], width: int = 100) -> list[str]:
    """The roles as lines of text.

    Example:
        >>> print(table([RoleState("ps:0", "localhost:7", 12, "running", 1, 0.5, 2**28, "up")])[1])
        ps:0      12 running      1   0.50    256 MiB  up
    """
    rows = ["role     pid state restarts  cores     memory  last line"]
    for role in roles:
        row = (
            f"{role.role:8}{role.pid or '-':>4} {role.state:9}{role.restarts:5}{role.cores:7.2f}"
            f"{role.memory / 2**20:7.0f} MiB  {role.last_line}"
        )
        rows.append(row[:width])
    return rows
