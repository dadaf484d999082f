"""``laser_keras`` alone: what it asks for, and what importing it brings in."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import keras

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
import keras
import numpy

def top_level():
    return {name.split(".")[0] for name in sys.modules}

before = top_level()
import laser_keras
from laser_keras import LaserEncoder
LaserEncoder(num_recent_segments=2)(numpy.ones((1, 16)), numpy.ones((1, 30, 16)))
brought = {name for name in top_level() - before if not name.startswith("_")}
print(",".join(sorted(brought - set(sys.stdlib_module_names))))
print(",".join(sorted(before | brought)))
"""


def imported() -> tuple[set[str], set[str]]:
    """Packages that importing ``laser_keras`` adds to Keras and NumPy; all that are loaded."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT, check=True
    )
    added, every = done.stdout.strip().splitlines()[-2:]
    return set(filter(None, added.split(","))), set(every.split(","))


def test_importing_brings_nothing_but_the_package_itself() -> None:
    added, every = imported()
    lazily = {"keras", "numpy", keras.backend.backend(), "jaxlib", "scipy", "sympy", "mpmath"}
    assert "laser_keras" in added
    assert added - lazily == {"laser_keras"}
    others = {"seqvault", "laser_features", "components", "tfx_pipeline", "serving", "tfx"}
    others |= {"pyarrow", "numba", "grpc", "zstandard", "apache_beam", "yaml"}
    assert not others & added
    # Of the backends only the chosen one (Keras itself may look for TensorFlow).
    assert not {"jax", "torch"} - {keras.backend.backend()} & every & added


def test_the_package_asks_for_keras_and_numpy_alone() -> None:
    requires = importlib.metadata.requires("laser-ranking") or []
    always = sorted(r for r in requires if "extra ==" not in r)
    assert [r.split(">")[0] for r in always] == ["keras", "numpy"]


def test_no_backend_is_imported_by_name() -> None:
    for path in (ROOT / "laser_keras").rglob("*.py"):
        for line in path.read_text().splitlines():
            code = line.strip()
            if code.startswith(("import ", "from ")) and not line.startswith(" "):
                package = code.split()[1].split(".")[0]
                known = {"keras", "numpy", "laser_keras"}
                assert package in known | set(sys.stdlib_module_names), f"{path.name}: {code}"
