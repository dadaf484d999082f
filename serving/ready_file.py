"""The ready file: tells the parent process where a server listens."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_ready_file(path: str | Path, **content: str | int | None) -> None:
    """Write the addresses and this process's id as JSON, by rename: never seen half-written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_ready_file(Path(folder, "ready.json"), rest="127.0.0.1:8501")
        ...     sorted(json.loads(Path(folder, "ready.json").read_text()))
        ['pid', 'rest']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({**content, "pid": os.getpid()}) + "\n", encoding="utf-8")
    temporary.replace(path)
