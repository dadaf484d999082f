"""Examples in docstrings run, and the commands of the documentation exist."""

import doctest
import importlib
import pkgutil
import re
import shlex

import pytest
from serving_helpers import REPOSITORY

import serving
from serving.cli import _parser

MODULES = sorted(module.name for module in pkgutil.walk_packages(serving.__path__, "serving."))
DOCUMENT = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    assert module.__doc__


def test_commands_are_ones_that_the_program_takes():
    commands = re.findall(r"^laser-serving (.+)$", DOCUMENT, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        _parser().parse_args(shlex.split(command))


def test_every_flag_that_is_named_exists():
    helps = _flags()
    section = DOCUMENT.split("## Model server")[1].split("## TensorFlow Serving")[0]
    for flag in re.findall(r"`(--[a-z_]+)`", section):
        assert flag in helps, flag


def test_files_that_are_named_exist():
    for path in re.findall(r"`((?:serving|benchmarks)/[\w./]+\.\w+)`", DOCUMENT):
        assert (REPOSITORY / path).is_file(), path


def _flags() -> set[str]:
    (commands,) = (action for action in _parser()._actions if action.choices)
    return set(commands.choices["model-server"]._option_string_actions)
