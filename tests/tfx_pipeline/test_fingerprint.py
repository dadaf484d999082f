"""Cache keys of code: any file that a step reaches by its imports changes its fingerprint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tfx_pipeline.fingerprint import code_fingerprint, combine, file_fingerprint
from tfx_pipeline.reached_modules import ROOMS, reached_files

STEPS = [
    "components.seqvault_example_gen.executor",
    "components.serving_check.executor",
    "tfx_pipeline.definition.preprocessing",
    "tfx_pipeline.definition.evaluation",
    "tfx_pipeline.training.run_fn",
]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose modules import one another in every way that Python has."""
    files = {
        "__init__.py": "",
        "start.py": "from some_package.plain import a\nfrom . import beside\n",
        "plain.py": "import some_package.deep.inner\n",
        "beside.py": "def late():\n    from some_package import inside_a_function\n",
        "inside_a_function.py": "from .deep import other\n",
        "stranger.py": "A = 1\n",
        "deep/__init__.py": "",
        "deep/inner.py": "from ..above import b\n",
        "deep/other.py": "",
        "above.py": "import json\n",
    }
    for name, text in files.items():
        path = tmp_path / "some_package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "some_package"


def test_every_file_that_is_reached_changes_the_fingerprint_and_no_other(package):
    def now():
        return code_fingerprint(["some_package.start"], ["some_package"])

    before = now()
    for path in sorted(package.rglob("*.py")):
        text = path.read_text()
        path.write_text(text + "# changed\n")
        assert (now() == before) == (path.name == "stranger.py"), path
        path.write_text(text)
    assert now() == before


def test_what_a_step_imports_is_what_is_reached():
    """Found in the text; here the same is asked of Python itself, with light steps."""
    for step in ("laser_features.request", "tfx_pipeline.plan", "seqvault.service.client"):
        code = (
            f"import sys, {step}\n"
            f"print('\\n'.join(m for m in sys.modules if m.split('.')[0] in {ROOMS!r}))"
        )
        loaded = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert set(loaded.stdout.split()) <= set(reached_files([step])), step


def test_the_lists_of_each_step_hold_what_it_needs():
    reached = {step: set(reached_files([step])) for step in STEPS}
    assert "tfx_pipeline.training.row_lookup" in reached["tfx_pipeline.definition.preprocessing"]
    assert "seqvault.read.planned_read" in reached["components.seqvault_example_gen.executor"]
    assert "laser_keras.layers.rank_mixer" in reached["tfx_pipeline.training.run_fn"]
    assert "tfx_pipeline.ranking_metrics" in reached["tfx_pipeline.definition.evaluation"]
    # A change of a dataset's adapter or of the demo must not train again.
    assert not any(".datasets" in name or ".demo" in name for step in reached.values()
                   for name in step)  # fmt: skip


def test_a_module_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"no source file for module 'tfx_pipeline.nothing'"):
        code_fingerprint(["tfx_pipeline.nothing"])


def test_fingerprints_of_files_and_combinations(tmp_path):
    path = Path(tmp_path, "file")
    path.write_bytes(b"one")
    before = file_fingerprint(path)
    path.write_bytes(b"two")
    assert file_fingerprint(path) != before
    assert combine("a", "bc") != combine("ab", "c")
