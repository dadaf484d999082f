"""The images' Dockerfiles, as far as they can be judged without docker."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "tfx_pipeline" / "deploy" / "pipeline.Dockerfile"
GATEWAY = ROOT / "serving" / "deploy" / "gateway.Dockerfile"


def instructions(path):
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = (line.strip() for line in text.splitlines())
    return [tuple(line.split(None, 1)) for line in lines if line and not line.startswith("#")]


def pins(name):
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("path", [PIPELINE, GATEWAY])
def test_a_container_runs_as_an_ordinary_user(path):
    users = [text for name, text in instructions(path) if name == "USER"]
    assert users and users[-1] not in ("root", "0")


@pytest.mark.parametrize("path", [PIPELINE, GATEWAY])
def test_what_is_copied_is_there_and_not_ignored(path):
    ignored = {
        line.strip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line
    }
    copies = [text.split() for name, text in instructions(path) if name == "COPY"]
    sources = [each for copy in copies if not copy[0].startswith("--") for each in copy[:-1]]
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source not in ignored


@pytest.mark.parametrize("path", [PIPELINE, GATEWAY])
def test_the_linter_has_no_warning(path):
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.is_file():
        pytest.skip("hadolint is not installed")
    command = [linter, "--no-color", "--failure-threshold", "warning", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_beams_workers_start_with_beams_own_program_of_the_same_version():
    steps = instructions(PIPELINE)
    assert steps[-1] == ("ENTRYPOINT", '["/opt/apache/beam/boot"]')
    assert ("COPY", "--from=beam /opt/apache/beam /opt/apache/beam") in steps
    (beam,) = [text for name, text in steps if name == "FROM" and text.startswith("apache/beam")]
    assert beam == f"apache/beam_python3.10_sdk:{pins('image.lock')['apache-beam']} AS beam"
    gpu = f"tensorflow[and-cuda]=={pins('image.lock')['tensorflow']}"
    assert any(gpu in text for name, text in steps if name == "RUN")


def test_the_image_has_the_locked_packages_and_none_for_development():
    image, everything = pins("image.lock"), pins("pipeline.lock")
    assert image.items() <= everything.items()
    source = ast.parse((ROOT / "setup.py").read_text())
    (dev,) = [
        node.value
        for node in source.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "DEV"
    ]
    names = {each.value for each in dev.elts if isinstance(each, ast.Constant)}
    names = {re.split(r"[<>=\[]", name)[0] for name in names}
    assert len(names) > 8
    assert not names & set(image) and names <= set(everything)
