"""The results of a comparison on disk: a JSON line and a file of scores per run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfx_pipeline.errors import PipelineError

OK, DIVERGED, FAILED = "ok", "diverged", "failed"
"""Status of a run that was taken."""


class ResultsFile:
    """The runs taken, one line each; one that was interrupted or failed is taken again.

    Args:
        folder: Where ``results.jsonl`` and ``scores/`` lie.
        dataset: Fingerprint of the dataset: lines of another one are refused.

    Raises:
        PipelineError: A line is of another dataset, or is none.
    """

    def __init__(self, folder: Path, dataset: str) -> None:
        self.path, self._scores = folder / "results.jsonl", folder / "scores"
        self._dataset = dataset
        self._scores.mkdir(parents=True, exist_ok=True)
        self._lines: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(self._complete_lines(), start=1):
            try:
                entry = json.loads(line)
                key, of = entry["run"], entry["dataset"]
            except (ValueError, KeyError, TypeError) as error:
                raise PipelineError(
                    f"{self.path}: line {number} is not a result ({error}); move the file away"
                ) from error
            if of != dataset:
                raise PipelineError(
                    f"{self.path} holds results of another dataset ({str(of)[:12]}, not "
                    f"{dataset[:12]}): give another --work folder, or move the file away"
                )
            self._lines[key] = entry

    def latest(self, key: str, fingerprint: str) -> dict[str, Any] | None:
        """The last line of a run with these settings, whatever came of it."""
        entry = self._lines.get(key)
        return entry if entry is not None and entry["settings"] == fingerprint else None

    def find(self, key: str, fingerprint: str) -> dict[str, Any] | None:
        """The line of a run with these settings that need not be taken again.

        That is one whose scores are there, or that diverged, as it would again. A failure may be
        the machine's.
        """
        entry = self.latest(key, fingerprint)
        if entry is None or entry["status"] == DIVERGED:
            return entry
        return entry if entry["status"] == OK and self._path(key).is_file() else None

    def add(
        self, key: str, fingerprint: str, entry: dict[str, Any], scores: NDArray | None
    ) -> dict[str, Any]:
        """Keep a run's result: scores first, so that a line never lacks them."""
        if scores is not None:
            partial = self._scores / f".{key}.npy"
            np.save(partial, np.asarray(scores, np.float32))
            os.replace(partial, self._path(key))
        line = {"run": key, "dataset": self._dataset, "settings": fingerprint, **entry}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines[key] = line
        return line

    def scores(self, key: str) -> NDArray[np.float32]:
        """The scores of a run on the eval split's impressions."""
        return np.asarray(np.load(self._path(key)))

    def _path(self, key: str) -> Path:
        return self._scores / f"{key}.npy"

    def _complete_lines(self) -> list[str]:
        """The complete lines; a last line torn by a kill is cut off the file."""
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with self.path.open("r+b") as file:
                file.truncate(end)
        return [line for line in content[:end].decode("utf-8").splitlines() if line.strip()]
