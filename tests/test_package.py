"""What is published: a whole wheel, honest metadata, commands that answer at once."""

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("laser_keras", "seqvault", "laser_features", "components", "tfx_pipeline", "serving")
VERSION = importlib.metadata.version("laser-ranking")
COMMANDS = ("seqvault", "laser-pipeline", "laser-serving")
HEAVY = ("tensorflow", "keras", "tfx", "numba", "pyarrow", "numpy", "grpc", "aiohttp")


def tracked(*patterns: str) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git working copy")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the sources make, built away from them."""
    copy = tmp_path_factory.mktemp("sources")
    metadata = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"]
    for name in [*metadata, *tracked(*ROOMS)]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return path


def test_every_file_of_a_room_is_in_the_wheel(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    missing = {name for name in tracked(*ROOMS) if name not in packed}
    assert not missing
    assert not {name for name in packed if name.split("/")[0] in ("tests", "benchmarks", "docs")}


def test_the_metadata_say_what_a_person_looks_for(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = archive.read(name).decode()
    for line in (
        f"Version: {VERSION}",
        "License-Expression: Apache-2.0",
        "License-File: LICENSE",
        "License-File: NOTICE",
        "Description-Content-Type: text/markdown",
        "Requires-Python: >=3.10",
    ):
        assert f"\n{line}\n" in metadata, line
    always = re.findall(r"^Requires-Dist: (\w+)[^;\n]*$", metadata, re.MULTILINE)
    assert always == ["keras", "numpy"]
    extras = set(re.findall(r"^Provides-Extra: (\w+)$", metadata, re.MULTILINE))
    assert extras == {"seqvault", "kafka", "gateway", "serving", "pipeline", "docs", "dev"}


def test_every_room_is_typed(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {room for room in ROOMS if f"{room}/py.typed" not in packed} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_tells_its_version_without_loading_libraries(command: str) -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name=command)
    script = (
        f"import sys; from {entry.module} import {entry.attr} as main\n"
        "try:\n    main(['--version'])\nexcept SystemExit as end:\n    assert not end.code\n"
        f"loaded = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "print(','.join(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == f"{command} {VERSION}\n\n", done.stderr


def test_the_version_is_the_same_everywhere() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None and cited[1] == VERSION
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{VERSION}] - " in changes
    # Nothing else in the sources may hold a number of its own that would grow stale.
    assert (ROOT / "setup.py").read_text().count(f'"{VERSION}"') == 1
    owned = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert not [path for path in owned if "__version__ =" in path.read_text(encoding="utf-8")]
