"""The script behind `make env` says what is missing, soon, and leaves nothing half made."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Without bounds, pip and uv wait minutes for a network that swallows what is sent to it. The
# script's own bounds add up to less than ten seconds; this machine may be busy.
FAR_TOO_LONG = 120


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def set_up(folder: Path, version: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(folder / "tools" / "setup_env.sh"), "light", "no-such-python", version, "."],
        capture_output=True,
        text=True,
        timeout=FAR_TOO_LONG,
        env={**os.environ, "PYTHON": "", **environment},
    )


def assert_names_three_ways_out(result: subprocess.CompletedProcess[str], version: str) -> None:
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    (first,) = (place for place, line in enumerate(lines) if "error:" in line)
    assert f"no Python {version} found here, and none could be downloaded" in lines[first]
    ways = "\n".join(lines[first:])
    for way in (
        "  1. install it",
        "PYTHON=/path/to/",
        "  2. let uv download",
        "  3. use a container",
    ):
        assert way in ways, result.stderr


def test_a_python_that_does_not_exist_is_named_with_what_to_do() -> None:
    result = set_up(ROOT, "3.99", UV_OFFLINE="1")
    assert_names_three_ways_out(result, "3.99")
    assert not (ROOT / ".venv-no-such-python").exists()


def test_a_download_that_never_comes_is_not_waited_for(silent_server: str, tmp_path: Path) -> None:
    """Python 3.14 has builds to download; nothing here needs it."""
    if shutil.which("python3.14"):
        pytest.skip("Python 3.14 is here")
    result = set_up(
        ROOT,
        "3.14",
        UV_PYTHON_INSTALL_MIRROR=silent_server,
        UV_PYTHON_INSTALL_DIR=str(tmp_path / "pythons"),
    )
    assert_names_three_ways_out(result, "3.14")


def test_without_uv_and_without_a_network_the_ways_out_are_the_same(
    silent_server: str, tmp_path: Path
) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "setup.py").touch()
    shutil.copy(ROOT / "tools" / "setup_env.sh", tmp_path / "tools")
    result = set_up(
        tmp_path,
        "3.99",
        UV="no-such-uv",
        PIP_INDEX_URL=silent_server,
        PIP_CONFIG_FILE=os.devnull,
        PIP_FIND_LINKS="",
        PIP_EXTRA_INDEX_URL="",
    )
    assert_names_three_ways_out(result, "3.99")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["setup.py", "tools"]


def test_make_demo_where_there_is_no_python_says_so(silent_server: str, tmp_path: Path) -> None:
    """`make demo` of an empty clone, on a machine with nothing but make and a shell."""
    if any(Path(place, "python3.10").exists() for place in ("/usr/bin", "/usr/local/bin")):
        pytest.skip("the system has Python 3.10 in a place where it is always found")
    for name in ("Makefile", "setup.py", "tools/setup_env.sh", "requirements/pipeline.lock"):
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "clone" / name)
    (tmp_path / "bin").mkdir()
    for program in ("bash", "make", "cat", "cksum", "dirname", "rm"):
        found = shutil.which(program)
        assert found is not None
        (tmp_path / "bin" / program).symlink_to(found)
    done = subprocess.run(
        [str(tmp_path / "bin" / "make"), "demo"],
        cwd=tmp_path / "clone",
        capture_output=True,
        text=True,
        timeout=FAR_TOO_LONG,
        env={
            "PATH": str(tmp_path / "bin"),
            "HOME": str(tmp_path),
            "PIP_INDEX_URL": silent_server,
            "PIP_CONFIG_FILE": os.devnull,
        },
    )
    assert done.returncode != 0
    ways = done.stderr[done.stderr.index("error: no Python 3.10") :]
    for way in ("1. install it", "2. let uv download", "3. use a container"):
        assert way in ways, done.stderr
    assert not (tmp_path / "clone" / ".venv").exists()


def test_a_python_that_is_named_is_taken(tmp_path: Path) -> None:
    """PYTHON points at any place; one of another version is not taken."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert_names_three_ways_out(set_up(ROOT, "3.99", UV_OFFLINE="1", PYTHON=str(python)), "3.99")
    python.write_text("#!/bin/sh\nexit 0\n")
    result = set_up(ROOT, "3.99", UV_OFFLINE="1", PYTHON=str(python))
    assert "none could be downloaded" not in result.stderr
    shutil.rmtree(ROOT / ".venv-no-such-python", ignore_errors=True)
