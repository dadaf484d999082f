"""The documentation of the layers is executed, and its defaults are the real ones."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re

import keras
import pytest
from layer_tools import long_on

import laser_keras

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(laser_keras.__path__, "laser_keras.")
)
CLASSES = sorted(
    name for name in laser_keras.__all__ if inspect.isclass(getattr(laser_keras, name))
)


@pytest.mark.parametrize("module", long_on(("jax",), MODULES))
def test_examples_run(module: str) -> None:
    results = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert results.failed == 0


@pytest.mark.parametrize("name", CLASSES)
def test_every_argument_is_documented_with_its_real_default(name: str) -> None:
    layer = getattr(laser_keras, name)
    text = inspect.getdoc(layer)
    assert text is not None
    section = re.search(r"^Args:\n(.*?)(?=^\w[\w ]*:)", text, re.DOTALL | re.MULTILINE)
    assert section is not None, "no Args section"
    entries = re.findall(
        r"^    ([\w*, ]+): (.*?)(?=^    [\w*]|\Z)", section[1], re.DOTALL | re.MULTILINE
    )
    documented = {
        key.strip(): " ".join(body.split()) for keys, body in entries for key in keys.split(",")
    }
    parameters = [
        p
        for p in inspect.signature(layer.__init__).parameters.values()
        if p.name != "self" and p.kind is not p.VAR_KEYWORD
    ]
    for parameter in parameters:
        assert parameter.name in documented, parameter.name
        body = documented[parameter.name]
        stated = re.search(r"Defaults to (?:``)?(.*?)(?:``)?(?: \(.*?\))?\.(?: |$)", body + " ")
        if parameter.default is inspect.Parameter.empty or body.startswith("see "):
            continue
        assert stated is not None, f"{parameter.name}: no default in {body!r}"
        expected = parameter.default
        text = stated[1].strip("`")
        if expected == ():
            assert text == "none"
        elif isinstance(expected, (int, float)) and not isinstance(expected, bool):
            assert float(text) == float(expected), parameter.name
        else:
            assert text.strip('"') == str(expected), parameter.name


LAYERS = [name for name in CLASSES if issubclass(getattr(laser_keras, name), keras.layers.Layer)]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("section", ["Args", "Call arguments", "Returns", "Raises", "Example"])
def test_every_public_class_has_the_section(name: str, section: str) -> None:
    text = inspect.getdoc(getattr(laser_keras, name)) or ""
    found = re.search(rf"^{section}:\n(.+?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    if section == "Example":
        # Doctest's own parser, so that what is written is what ``test_examples_run`` executes.
        assert doctest.DocTestParser().get_examples(text), "no executed example"
        assert re.search(r"^Example:$", text, re.MULTILINE)
    else:
        assert found is not None and found[1].strip()


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_says_in_two_sentences_when_to_use_it(name: str) -> None:
    """First line: what it does. Then, ahead of formulas and rules: when to use it."""
    summary, when, *_ = (inspect.getdoc(getattr(laser_keras, name)) or "").split("\n\n")
    assert "\n" not in summary
    assert when.startswith("Use it "), when
    assert len(re.findall(r"[.:](?:\s|$)", when)) >= 2, when


@pytest.mark.parametrize("name", CLASSES)
def test_no_description_is_a_bare_reference(name: str) -> None:
    text = inspect.getdoc(getattr(laser_keras, name)) or ""
    assert re.search(r"\bsee there\b", text, re.IGNORECASE) is None


@pytest.mark.parametrize("name", LAYERS)
def test_every_public_class_says_where_it_comes_from(name: str) -> None:
    text = inspect.getdoc(getattr(laser_keras, name)) or ""
    source = re.search(r"^Source: (.+)", text, re.MULTILINE)
    assert source is not None or name == "FeedForward"


@pytest.mark.parametrize("name", LAYERS)
def test_every_call_argument_is_described(name: str) -> None:
    layer = getattr(laser_keras, name)
    text = inspect.getdoc(layer) or ""
    found = re.search(r"^Call arguments:\n(.+?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    described = {
        part.strip()
        for names in re.findall(r"^    (\w[\w, ]*):", found[1], re.MULTILINE)
        for part in names.split(",")
    }
    taken = set(inspect.signature(layer.call).parameters) - {"self", "training"}
    assert taken == described - {"training"}


def raised_messages(module: str) -> list[str]:
    """The source of every message that a module's ``raise ValueError(...)`` carries."""
    source = inspect.getsource(importlib.import_module(module))
    return [
        ast.unparse(node.exc.args[0])
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and node.exc.args
        and ast.unparse(node.exc.func) == "ValueError"
    ]


@pytest.mark.parametrize("module", long_on(("jax",), MODULES))
def test_errors_name_the_layer_and_the_argument_and_say_what_came(module: str) -> None:
    for message in raised_messages(module):
        assert "{self.name}" in message or "{owner}" in message or "`system`" in message, message
        assert "`" in message or "{name}" in message, message
        assert "Received" in message or "Missing: " in message, message


@pytest.mark.parametrize(
    "name", [n for n in laser_keras.__all__ if inspect.isfunction(getattr(laser_keras, n))]
)
def test_every_public_function_is_documented(name: str) -> None:
    text = inspect.getdoc(getattr(laser_keras, name)) or ""
    assert len(text) > 60
    for parameter in inspect.signature(getattr(laser_keras, name)).parameters:
        assert parameter in text, parameter
