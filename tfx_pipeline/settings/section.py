"""The base of all settings sections: dataclass, checks and error texts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic_core import ArgsKwargs, ErrorDetails

from tfx_pipeline.errors import SettingsError

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
"""Of every section: ``@dataclass(frozen=True, kw_only=True, config=CONFIG)`` of pydantic."""

Section = TypeVar("Section")


def _number(value: object) -> object:
    """Booleans count as integers in Python; as a setting ``yes`` is not a number."""
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


Integer = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]


def empty_is_default(value: object) -> object:
    """An empty section in YAML is ``None`` and takes every default."""
    return {} if value is None else value


def check(section: type[Section], values: object, source: str) -> Section:
    """Make a section of plain values, for instance of those read from a YAML file.

    Args:
        section: A class of settings.
        values: A mapping of names to values.
        source: Where they come from; errors begin with it.

    Raises:
        SettingsError: One line that names every entry that is unknown, missing or does not fit.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"{source} must hold entries like `name: ...`; received {values!r}")
    try:
        return TypeAdapter(section).validate_python(dict(values))
    except ValidationError as error:
        problems = [_problem(each, section) for each in error.errors()]
        raise SettingsError(f"{source}: {'; '.join(problems)}") from error


def plain(section: Any) -> dict[str, Any]:
    """The settings as values that JSON takes; ``check`` makes an equal section of them."""
    return dict(TypeAdapter(type(section)).dump_python(section, mode="json"))


def sections_of(section: type) -> dict[str, type]:
    """The sections within a class of settings, by name."""
    kinds = {name: getattr(kind, "__origin__", kind) for name, kind in _hints(section).items()}
    return {
        name: kind
        for name, kind in kinds.items()
        if isinstance(kind, type) and is_pydantic_dataclass(kind)
    }


def _hints(section: type) -> dict[str, Any]:
    return get_type_hints(section, include_extras=True)


def _problem(error: ErrorDetails, root: type) -> str:
    where = ".".join(str(part) for part in error["loc"])
    kind, value = error["type"], error["input"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown(where, root)
    if kind.startswith("missing"):
        return f"the entry {where!r} is missing"
    if kind in _PLAIN_WORDS:
        return f"{where} is {value!r}; {_PLAIN_WORDS[kind]}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "value_error" and isinstance(value, (dict, ArgsKwargs)):
        return f"{where}: {message}" if where else message
    return f"{where} is {value!r}; {message}"


# Where pydantic speaks of Python, not of a config file.
_PLAIN_WORDS = {
    "tuple_type": "should be a list",
    "dict_type": "should hold entries like `name: value`",
    "dataclass_type": "should hold entries like `name: value`",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "int_type": "should be a whole number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "string_type": "should be text: put it in quotes if it looks like a number",
}


def _unknown(where: str, root: type) -> str:
    *path, name = where.split(".")
    section = root
    for part in path:
        section = sections_of(section).get(part, section)
    known = sorted(_hints(section))
    at = next((key for key, each in sections_of(root).items() if name in _hints(each)), None)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; it belongs to section {at!r}" if at else ""
    hint = f"; did you mean {near[0]!r}?" if near else hint
    return f"unknown entry {where!r}; known are {known}{hint}"
