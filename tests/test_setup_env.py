"""The script behind `make env` says what is missing, and leaves nothing half made."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_missing_python_is_named_with_what_to_do() -> None:
    result = subprocess.run(
        [str(ROOT / "tools" / "setup_env.sh"), "light", "no-such-python", "3.99", "."],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "UV_OFFLINE": "1"},
    )
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("[setup] error: no Python 3.99 found. Install it"), result.stderr
    assert not (ROOT / ".venv-no-such-python").exists()
