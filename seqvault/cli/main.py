"""Runs a command and reports errors as one line of text and an exit code."""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from seqvault.cli.parser import parser
from seqvault.errors import DamagedFileError, SeqVaultError

BAD_REQUEST, DAMAGED, TRY_AGAIN, INTERRUPTED = 2, 3, 4, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code.

    0: success. 2: invalid arguments or store. 3: a file is damaged. 4: retryable, the same command
    may succeed later (server down, store locked, disk full). 130: interrupted.

    Example:
        >>> main(["warm-up", "--json"])  # doctest: +ELLIPSIS
        {"seconds": ...}
        0
    """
    arguments = parser().parse_args(argv)
    module, _, function = arguments.run.partition(":")
    run = getattr(importlib.import_module(f"seqvault.cli.{module}"), function)
    try:
        result = run(arguments)
        if result is not None:
            _print(result, arguments.json)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `seqvault get ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not _is_expected(error):
            raise
        print(f"seqvault: {error}", file=sys.stderr)
        return _code_of(error)
    return 0


def _is_expected(error: Exception) -> bool:
    """Whether an error needs no traceback: expected errors explain themselves, others are bugs."""
    arrow = sys.modules.get("pyarrow")
    from_arrow = arrow is not None and isinstance(error, arrow.ArrowInvalid)
    return from_arrow or isinstance(error, SeqVaultError | OSError | json.JSONDecodeError)


def _code_of(error: Exception) -> int:
    if isinstance(error, DamagedFileError):
        return DAMAGED
    return TRY_AGAIN if getattr(error, "retryable", False) else BAD_REQUEST


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:18} {value}")
