"""The reference of settings: a table for the docs and a JSON schema for editors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from tfx_pipeline.settings.pipeline_settings import PipelineSettings

_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


def json_schema() -> dict[str, Any]:
    """A JSON schema of config files, which editors complete and check YAML by."""
    schema = TypeAdapter(PipelineSettings).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def markdown_table() -> str:
    """All settings, a row each: name, type and range, default, what it is.

    Example:
        >>> print(markdown_table().splitlines()[0])
        | setting | type | default | what |
    """
    schema = json_schema()
    rows = [["setting", "type", "default", "what"], ["---"] * 4, *_rows(schema, schema, "")]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def plain_list() -> str:
    """All settings for a terminal: name, type and default on a line, what it is below."""
    schema = json_schema()
    return "\n".join(
        f"{name.strip('`')}  ({', '.join(filter(None, (kind, default.strip('`'))))})\n    {what}"
        for name, kind, default, what in _rows(schema, schema, "")
    )


def _rows(section: dict[str, Any], schema: dict[str, Any], prefix: str) -> Iterator[list[str]]:
    required = section.get("required", ())
    for name, entry in section["properties"].items():
        inner = _section(entry, schema)
        if inner is not None:
            yield from _rows(inner, schema, f"{prefix}{name}.")
            continue
        default = "required" if name in required else _shown(entry.get("default"))
        yield [f"`{prefix}{name}`", _kind(entry), default, entry["description"]]


def _section(entry: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    reference = entry.get("$ref")
    if reference is None:
        return None
    return dict(schema["$defs"][reference.rpartition("/")[2]])


def _kind(entry: dict[str, Any]) -> str:
    options = [option for option in entry.get("anyOf", [entry]) if option.get("type") != "null"]
    kinds = {"array": "list", "object": "mapping", "string": "text"}
    parts = [kinds.get(option["type"], option["type"]) for option in options]
    limits = [
        text.format(f"{option[key]:g}" if option[key] < 10**6 else option[key])
        for option in options
        for key, text in _LIMITS.items()
        if key in option
    ]
    return ", ".join([*parts, *limits])


def _shown(value: Any) -> str:
    return "" if value in (None, [], {}, "") else f"`{_text(value)}`"


def _text(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)
