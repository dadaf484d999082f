"""One training run as a file: what a supervisor hands to the chief."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainingJob:
    """What ``tfx_pipeline.training.run_fn`` needs of TFX's ``FnArgs``, with the same names.

    Attributes:
        train_files: Patterns of Examples files.
        eval_files: Patterns of Examples files.
        transform_graph_path: Transform's output.
        serving_model_dir: Where the SavedModel goes.
        model_run_dir: Where checkpoints and logs lie in the end.
        custom_config: See ``run_fn``.
    """

    train_files: list[str]
    eval_files: list[str]
    transform_graph_path: str | None
    serving_model_dir: str
    model_run_dir: str
    custom_config: dict[str, Any]

    @classmethod
    def of_fn_args(cls, fn_args: Any) -> TrainingJob:
        """From TFX's arguments of a Trainer."""
        return cls(
            list(fn_args.train_files),
            list(fn_args.eval_files),
            fn_args.transform_graph_path,
            fn_args.serving_model_dir,
            fn_args.model_run_dir,
            dict(fn_args.custom_config or {}),
        )

    def save(self, path: Path) -> Path:
        """Write it down."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> TrainingJob:
        """Read it."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
