"""The command line: bad input gets one line and a non-zero exit."""

import subprocess
import sys

import pytest

from tfx_pipeline.cli import main


@pytest.fixture
def fails(capsys):
    """Run a command that must fail; returns its one line."""

    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 1
        captured = capsys.readouterr()
        (line,) = captured.err.strip().splitlines()
        return line.removeprefix("laser-pipeline: error: ")

    return run


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "data").mkdir()
    return ["--data", tmp_path / "data", "--store", tmp_path / "store"]


def test_a_run_without_a_prepared_dataset(fails, folders, tmp_path):
    line = fails("run", *folders, "--work", tmp_path / "work")
    assert "dataset.json is missing; prepare it again" in line


def test_loading_a_folder_without_a_spec(fails, folders):
    assert "features.yaml: cannot be read" in fails("load", *folders)


def test_preparing_a_folder_that_is_not_there(fails, tmp_path):
    line = fails("prepare", "--source", tmp_path / "none", "--data", tmp_path / "out")
    assert "is not a folder; give one with" in line


def test_the_status_of_nothing(fails, tmp_path):
    assert "nothing was run there yet" in fails("status", "--work", tmp_path)


def test_what_nobody_expected_leaves_a_traceback_in_a_file(fails, tmp_path, monkeypatch):
    monkeypatch.setattr("tfx_pipeline.results.past_runs.read_runs", lambda database: 1 / 0)
    line = fails("status", "--work", tmp_path)
    assert line.startswith("ZeroDivisionError: division by zero")
    assert "read_runs" in (tmp_path / "error.log").read_text()


def test_a_full_disk_is_named(fails, tmp_path, monkeypatch):
    def full(database):
        raise OSError(28, "No space left on device", "metadata.sqlite")

    monkeypatch.setattr("tfx_pipeline.results.past_runs.read_runs", full)
    assert fails("status", "--work", tmp_path) == (
        "the disk is full (metadata.sqlite): free some space"
    )


@pytest.mark.parametrize(
    "words", ["No space left on device [Op:SaveV2]", "database or disk is full"]
)
def test_a_full_disk_is_named_whoever_met_it(fails, tmp_path, monkeypatch, words):
    def full(database):
        raise RuntimeError(words)

    monkeypatch.setattr("tfx_pipeline.results.past_runs.read_runs", full)
    assert (
        fails("status", "--work", tmp_path) == "the disk is full (while writing): free some space"
    )
    assert not (tmp_path / "error.log").exists()


def test_the_command_line_starts_without_tensorflow():
    code = "import sys, tfx_pipeline.cli; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", ["run", "check", "compile", "load"])
def test_the_first_line_comes_before_anything_slow_is_imported(command):
    """Also where everything is cached, or no kernel is compiled yet."""
    code = (
        "import builtins, sys\n"
        "from tfx_pipeline import cli\n"
        "def first(*words, **options):\n"
        "    slow = ('tensorflow', 'tfx', 'apache_beam', 'keras', 'numba', 'pyarrow', 'numpy')\n"
        "    sys.exit(repr([name for name in slow if name in sys.modules]))\n"
        "builtins.print = first\n"
        "cli.main(sys.argv[1:])"
    )
    options = {"--data": "d", "--store": "s"}
    if command != "load":
        options["--work"] = "w"
    if command == "compile":
        options |= {"--target": "kubeflow", "--output": "o"}
    arguments = [command, *(word for pair in options.items() for word in pair)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_the_demo_shows_something_before_tensorflow_is_imported() -> None:
    code = (
        "import sys, tfx_pipeline.demo.demo;"
        "print([m for m in ('tensorflow', 'tfx', 'apache_beam', 'keras') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
