"""The documentation of the layers is executed, and its defaults are the real ones."""

import doctest
import importlib
import inspect
import pkgutil
import re

import keras
import pytest

import laser_keras

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(laser_keras.__path__, "laser_keras.")
)
CLASSES = sorted(
    name for name in laser_keras.__all__ if inspect.isclass(getattr(laser_keras, name))
)


@pytest.mark.parametrize("module", MODULES)
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


@pytest.mark.parametrize("name", CLASSES)
def test_public_classes_say_what_they_return_and_where_they_come_from(name: str) -> None:
    layer = getattr(laser_keras, name)
    if not issubclass(layer, keras.layers.Layer):
        return
    text = inspect.getdoc(layer) or ""
    assert "Example:" in text or layer.__name__ == "SequenceRanker"
    if layer is not laser_keras.LaserRanker:
        assert "Call arguments:" in text and "Returns:" in text
