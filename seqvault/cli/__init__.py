"""The ``seqvault`` command.

Nothing heavy is imported before the arguments are understood, so that ``seqvault --help`` and
usage errors answer at once.
"""

from seqvault.cli.main import main

__all__ = ["main"]
