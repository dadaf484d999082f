"""Runs examples in this process: TensorFlow is imported once for all of them."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def load() -> Iterator[Callable[[str], dict[str, Any]]]:
    """Loads an example's names; examples may import one another, as when Python runs one."""
    sys.path.insert(0, str(EXAMPLES))
    yield lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")
    sys.path.remove(str(EXAMPLES))
