"""Validation of a feature spec's content: plain dicts in, tables and fields out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

from laser_features.errors import FeatureSpecError
from laser_features.field import POOLS, TYPES, Field
from laser_features.interactions import Interactions
from laser_features.local_time import is_time_zone
from laser_features.table import ID_KINDS, Table

FIELD_SECTIONS = ("event", "item", "user", "context", "candidate", "label")
SECTIONS = ("name", "history", "tables", *FIELD_SECTIONS, "interactions")
REQUIRED_SECTIONS = ("name", "history", "tables", "event", "label")
# Derived fields: of the request's clock, and of a candidate's item.
CLOCK_ROWS = {"hour_of_day": 24, "day_of_week": 7}
DERIVED = {"context": tuple(CLOCK_ROWS), "candidate": ("age_minutes",)}
# Names that the tables, Examples or model inputs already use.
RESERVED = {"user_id", "timestamp", "request_id", "item_id", "age_seconds", "length", "count"}
# Sections whose fields end up side by side in one table or under one prefix.
SHARED_NAMES = (("event", "item"), ("item", "candidate"), ("user", "context", "candidate", "label"))
_CLOCK_KEYS = {"derive", "utc_offset_hours", "time_zone", "table"}
_AGE_KEYS = {"derive", "of", "table", "boundaries", "quantiles"}
_FIELD_KEYS = {"type", "shape", "values", "pool"} | _CLOCK_KEYS | _AGE_KEYS
_MAX_ROWS = 2**31 - 1


@dataclass(frozen=True)
class ParsedSpec:
    """The validated parts of a feature spec."""

    name: str
    max_history: int
    tables: dict[str, Table]
    sections: dict[str, dict[str, Field]]
    interactions: Interactions


def parse_spec(content: object, source: str) -> ParsedSpec:
    """Validate ``content``; every problem is a ``FeatureSpecError`` that begins with ``source``."""
    return _Parser(source).parse(content)


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source

    def parse(self, content: object) -> ParsedSpec:
        top = self.mapping(content, "the spec")
        self.known_keys(top, set(SECTIONS), "the spec")
        for section in REQUIRED_SECTIONS:
            if not top.get(section):
                self.fail(section, "is missing or empty", f"add a section '{section}'")
        name = top["name"]
        if not isinstance(name, str):
            self.fail("name", f"is {name!r}", "give a short text")
        history = self.mapping(top["history"], "history")
        self.known_keys(history, {"max_length"}, "history")
        max_history = self.positive(history.get("max_length"), "history.max_length", 1)
        tables = {
            str(key): self.table(str(key), entry)
            for key, entry in self.mapping(top["tables"], "tables").items()
        }
        sections = {
            section: {
                str(key): self.field(section, str(key), entry, tables)
                for key, entry in self.mapping(top.get(section) or {}, section).items()
            }
            for section in FIELD_SECTIONS
        }
        self.check_names(sections)
        self.check_item_id(sections)
        self.check_ages(sections)
        self.check_tables_used(tables, sections)
        interactions = self.interactions(top.get("interactions"), sections)
        return ParsedSpec(name, max_history, tables, sections, interactions)

    def table(self, name: str, entry: object) -> Table:
        where = f"tables.{name}"
        values = self.mapping(entry, where)
        self.known_keys(values, {"rows", "width", "ids"}, where)
        rows = self.positive(values.get("rows"), f"{where}.rows", 2)
        if rows > _MAX_ROWS:
            self.fail(f"{where}.rows", f"is {rows}", f"rows are int32: at most {_MAX_ROWS}")
        width = self.positive(values.get("width"), f"{where}.width", 1)
        ids = self.one_of(values.get("ids"), ID_KINDS, f"{where}.ids")
        return Table(name, rows, width, ids)

    def field(self, section: str, name: str, entry: object, tables: dict[str, Table]) -> Field:
        where = f"{section}.{name}"
        values = self.mapping(entry, where)
        self.known_keys(values, _FIELD_KEYS, where)
        derive = values.get("derive")
        if derive is not None:
            self.check_derived(section, where, values)
        elif extra := sorted({"utc_offset_hours", "time_zone", "of"} & set(values)):
            self.fail(f"{where}.{extra[0]}", "is given", "only fields with 'derive' have it")
        kind = "int64" if derive else self.one_of(values.get("type"), tuple(TYPES), f"{where}.type")
        shape = self.shape(values.get("shape"), where, section, kind)
        boundaries = self.boundaries(values.get("boundaries"), where)
        quantiles = values.get("quantiles")
        if quantiles is not None:
            quantiles = self.positive(quantiles, f"{where}.quantiles", 2)
        table_name = values.get("table")
        field = Field(
            name=name,
            section=section,
            type=kind,
            table=table_name,
            boundaries=boundaries,
            quantiles=quantiles,
            shape=shape,
            derive=derive,
            utc_offset_hours=values.get("utc_offset_hours", 0.0),
            time_zone=values.get("time_zone"),
            of=values.get("of"),
            **self.values(values, where, section),
        )
        if kind == "string" and section != "item":
            self.fail(f"{where}.type", "is string", "only item fields may be: give an integer id")
        if table_name is None:
            self.check_without_table(field, where)
        elif table_name not in tables:
            found = f"names the unknown table {table_name!r}"
            self.fail(f"{where}.table", found, f"add it to 'tables' or use one of {list(tables)}")
        else:
            self.check_with_table(field, tables[table_name], where)
        return field

    def check_derived(self, section: str, where: str, values: Mapping[str, Any]) -> None:
        if section not in DERIVED:
            advice = "only context and candidate fields may be derived"
            self.fail(f"{where}.derive", "is given", advice)
        self.one_of(values["derive"], DERIVED[section], f"{where}.derive")
        extra = sorted(set(values) - (_CLOCK_KEYS if section == "context" else _AGE_KEYS))
        if extra:
            self.fail(where, f"has {extra} beside 'derive'", "remove them: the value is computed")
        offset = values.get("utc_offset_hours", 0)
        if isinstance(offset, bool) or not isinstance(offset, (int, float)) or abs(offset) > 14:
            self.fail(f"{where}.utc_offset_hours", f"is {offset!r}", "give hours within -14 and 14")
        zone = values.get("time_zone")
        if zone is not None and "utc_offset_hours" in values:
            self.fail(where, "has a time_zone and utc_offset_hours", "keep one of them")
        if zone is not None and not is_time_zone(zone):
            self.fail(
                f"{where}.time_zone",
                f"is {zone!r}",
                "give an IANA name like Europe/Berlin (package tzdata has them all)",
            )

    def check_without_table(self, field: Field, where: str) -> None:
        if field.boundaries is not None or field.quantiles is not None:
            self.fail(where, "has buckets but no table", "add 'table': buckets are its rows")
        if field.section in ("user", "context", "candidate"):
            self.fail(where, "has no table", "add 'table': nothing else reads such a field")

    def check_with_table(self, field: Field, table: Table, where: str) -> None:
        if field.section == "label":
            self.fail(f"{where}.table", "is given", "a label is never embedded: remove it")
        if field.shape is not None:
            self.fail(where, "has a shape and a table", "a content vector has no table: remove one")
        if field.boundaries is not None and field.quantiles is not None:
            self.fail(where, "has boundaries and quantiles", "keep one of them")
        if field.boundaries is not None or field.quantiles is not None:
            self.check_buckets(field, table, where)
            return
        if field.is_float:
            found = f"is {field.type}, which is not an id"
            self.fail(f"{where}.type", found, "add 'boundaries' or 'quantiles', or drop 'table'")
        if field.type == "string" and table.ids != "hash":
            found = f"is a string in a table with ids {table.ids!r}"
            self.fail(where, found, f"set tables.{table.name}.ids to hash, or store integer ids")
        if field.derive == "age_minutes":
            self.fail(
                where, "has no buckets", "add 'boundaries' or 'quantiles': an age is not an id"
            )
        if field.derive is not None:
            needed = CLOCK_ROWS[field.derive] + 1
            if table.ids != "direct" or table.rows < needed:
                found = f"has {table.rows} rows with ids {table.ids!r}"
                advice = f"{where} needs ids 'direct' and at least {needed} rows"
                self.fail(f"tables.{table.name}", found, advice)

    def check_buckets(self, field: Field, table: Table, where: str) -> None:
        if field.type == "string":
            self.fail(f"{where}.type", "is string", "only numbers have buckets")
        if table.ids != "direct":
            found = f"has ids {table.ids!r}"
            self.fail(f"tables.{table.name}", found, f"{where} has buckets: set ids to direct")
        buckets = field.quantiles or len(field.boundaries or ()) + 1
        if table.rows < buckets + 1:
            found = f"has {table.rows} rows, too small for the {buckets} buckets of {where}"
            self.fail(f"tables.{table.name}.rows", found, f"set at least {buckets + 1}")

    def check_names(self, sections: dict[str, dict[str, Field]]) -> None:
        allowed = {("event", "item_id"), ("user", "user_id")}
        for section, fields in sections.items():
            for name in fields:
                if not name.isidentifier():
                    self.fail(
                        f"{section}.{name}", "is not a plain name", "use letters, digits and _"
                    )
                if name in RESERVED and (section, name) not in allowed:
                    self.fail(f"{section}.{name}", "uses a reserved name", "rename it")
        for group in SHARED_NAMES:
            owner: dict[str, str] = {}
            for section in group:
                for name in sections[section]:
                    if name in owner:
                        found = f"uses a name that {owner[name]}.{name} has already"
                        self.fail(f"{section}.{name}", found, "a name can be used once: rename it")
                    owner[name] = section

    def check_item_id(self, sections: dict[str, dict[str, Field]]) -> None:
        events = sections["event"]
        item_id = events.get("item_id")
        if item_id is None or item_id.type != "int64" or item_id.table is None:
            found = "is missing" if item_id is None else f"is {item_id.to_dict()}"
            self.fail("event.item_id", found, "it must be {type: int64, table: <its table>}")
        if item_id.boundaries is not None or item_id.quantiles is not None:
            self.fail("event.item_id", "has buckets", "an id is not a quantity: remove them")
        sections["event"] = {"item_id": item_id, **events}
        user_id = sections["user"].get("user_id")
        if user_id is not None and (user_id.type != "int64" or user_id.boundaries):
            self.fail(
                "user.user_id", f"is {user_id.to_dict()}", "it must be int64, without buckets"
            )

    def check_ages(self, sections: dict[str, dict[str, Field]]) -> None:
        for name, field in sections["candidate"].items():
            if field.derive != "age_minutes":
                continue
            start = sections["item"].get(str(field.of))
            if start is None or start.type != "int64" or start.table is not None:
                found = "is missing" if field.of is None else f"is {field.of!r}"
                advice = "name an item field of type int64 without a table, in milliseconds UTC"
                self.fail(f"candidate.{name}.of", found, advice)

    def check_tables_used(
        self, tables: dict[str, Table], sections: dict[str, dict[str, Field]]
    ) -> None:
        used = {field.table for fields in sections.values() for field in fields.values()}
        for name in tables:
            if name not in used:
                self.fail(
                    f"tables.{name}", "is used by no field", "remove it or name it in a field"
                )

    def values(self, given: Mapping[str, Any], where: str, section: str) -> dict[str, Any]:
        """The arguments of a field that holds several values."""
        if given.get("values") is None:
            if given.get("pool") is not None:
                self.fail(f"{where}.pool", "is given", "only fields with 'values' are pooled")
            return {}
        if section != "item":
            found = f"is on a field of section {section!r}"
            self.fail(f"{where}.values", found, "only item fields hold several values")
        if given.get("table") is None or given.get("shape") is not None:
            self.fail(f"{where}.values", "is given", "such a field needs a table and no shape")
        if given.get("boundaries") is not None or given.get("quantiles") is not None:
            self.fail(f"{where}.values", "is given", "only ids may be several, not quantities")
        if not str(given.get("type")).startswith("int"):
            found = f"is on a {given.get('type')} field"
            self.fail(f"{where}.values", found, "several values are integer ids")
        pool = "mean" if given.get("pool") is None else given["pool"]
        return {
            "values": self.positive(given["values"], f"{where}.values", 1),
            "pool": self.one_of(pool, POOLS, f"{where}.pool"),
        }

    def interactions(self, content: object, sections: dict[str, dict[str, Field]]) -> Interactions:
        if content is None:
            return Interactions()
        given = self.mapping(content, "interactions")
        self.known_keys(given, {"similarity", "category", "cross"}, "interactions")
        vectors = [name for name, field in sections["item"].items() if field.shape is not None]
        ids = [
            name
            for name, field in sections["item"].items()
            if field.table is not None and field.values is None
        ]
        events = [
            name
            for name, field in sections["event"].items()
            if field.table is not None and name != "item_id"
        ]
        category = given.get("category")
        if category is not None:
            self.named(category, ids, "interactions.category", "an item field with a table")
        return Interactions(
            self.names(
                given, "similarity", vectors, "a content vector (an item field with a shape)"
            ),
            category,
            self.names(given, "cross", events, "an event field with a table"),
        )

    def names(
        self, given: Mapping[str, Any], key: str, known: list[str], kind: str
    ) -> tuple[str, ...]:
        names, where = given.get(key) or [], f"interactions.{key}"
        if not isinstance(names, (list, tuple)):
            self.fail(where, f"is {names!r}", "give a list of names")
        for name in names:
            self.named(name, known, where, kind)
        if len(set(names)) < len(names):
            self.fail(where, f"is {list(names)}", "name each field once")
        return tuple(names)

    def named(self, name: object, known: list[str], where: str, kind: str) -> None:
        if name not in known:
            has = f"the spec has {known}" if known else "the spec has none"
            self.fail(where, f"names {name!r}, which is not {kind}", has)

    def shape(self, shape: object, where: str, section: str, kind: str) -> tuple[int, ...] | None:
        if shape is None:
            return None
        if not isinstance(shape, (list, tuple)) or len(shape) != 1:
            self.fail(f"{where}.shape", f"is {shape!r}", "give a list of one width, e.g. [16]")
        if section != "item" or not kind.startswith("float"):
            found = f"is on a {kind} field of section {section!r}"
            self.fail(f"{where}.shape", found, "only float item fields are content vectors")
        return (self.positive(shape[0], f"{where}.shape", 1),)

    def boundaries(self, boundaries: object, where: str) -> tuple[float, ...] | None:
        if boundaries is None:
            return None
        where = f"{where}.boundaries"
        if not isinstance(boundaries, (list, tuple)) or not boundaries:
            self.fail(where, f"is {boundaries!r}", "give a list of increasing numbers")
        for value in boundaries:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                self.fail(where, f"holds {value!r}", "give a list of increasing numbers")
        for left, right in pairwise(boundaries):
            if left >= right:
                self.fail(where, f"holds {left} before {right}", "they must increase strictly")
        return tuple(boundaries)

    def mapping(self, value: object, where: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self.fail(where, f"is {value!r}", "give a mapping of names to values")
        return value

    def known_keys(self, values: Mapping[str, Any], known: set[str], where: str) -> None:
        unknown = sorted(str(key) for key in set(values) - known)
        if unknown:
            self.fail(where, f"has the unknown key {unknown[0]!r}", f"known are {sorted(known)}")

    def positive(self, value: object, where: str, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            found = "is missing" if value is None else f"is {value!r}"
            self.fail(where, found, f"give a whole number of at least {least}")
        return value

    def one_of(self, value: object, known: tuple[str, ...], where: str) -> str:
        if not isinstance(value, str) or value not in known:
            found = "is missing" if value is None else f"is {value!r}"
            self.fail(where, found, f"use one of {', '.join(known)}")
        return value

    def fail(self, where: str, found: str, advice: str) -> NoReturn:
        raise FeatureSpecError(f"{self.source}: {where} {found}; {advice}")
