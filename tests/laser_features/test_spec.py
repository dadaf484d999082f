"""The feature spec: what it derives, and one clear error per mistake."""

import copy
import pickle
import subprocess
import sys

import pyarrow as pa
import pytest
import yaml

from laser_features import FeatureSpec, FeatureSpecError

CONTENT = {
    "name": "example",
    "history": {"max_length": 4},
    "tables": {
        "item": {"rows": 100, "width": 8, "ids": "direct"},
        "author": {"rows": 50, "width": 4, "ids": "hash"},
        "tag": {"rows": 10, "width": 2, "ids": "vocabulary"},
        "duration": {"rows": 10, "width": 2, "ids": "direct"},
        "scenario": {"rows": 5, "width": 2, "ids": "direct"},
        "hour": {"rows": 25, "width": 2, "ids": "direct"},
        "user": {"rows": 30, "width": 4, "ids": "hash"},
    },
    "event": {
        "scenario": {"type": "int8", "table": "scenario"},
        "item_id": {"type": "int64", "table": "item"},
        "note": {"type": "float32"},
    },
    "item": {
        "author_id": {"type": "int64", "table": "author"},
        "tag": {"type": "int64", "table": "tag"},
        "duration_ms": {"type": "int32", "table": "duration", "quantiles": 8},
        "content": {"type": "float32", "shape": [3]},
        "made_ms": {"type": "int64"},
    },
    "user": {
        "user_id": {"type": "int64", "table": "user"},
        "years": {"type": "float32", "table": "duration", "boundaries": [18, 30, 50]},
    },
    "context": {
        "scenario": {"type": "int8", "table": "scenario"},
        "hour": {"derive": "hour_of_day", "utc_offset_hours": 8, "table": "hour"},
    },
    "candidate": {
        "age": {
            "derive": "age_minutes",
            "of": "made_ms",
            "table": "duration",
            "boundaries": [60, 1440],
        },
        "position": {"type": "int8", "table": "scenario"},
    },
    "label": {"click": {"type": "int8"}, "watch": {"type": "float32"}},
}


def changed(path, value):
    """CONTENT with the entry at a dotted path replaced (or removed, for ``...``)."""
    content = copy.deepcopy(CONTENT)
    *parents, last = path.split(".")
    entry = content
    for key in parents:
        entry = entry.setdefault(key, {})
    if value is ...:
        del entry[last]
    else:
        entry[last] = value
    return content


@pytest.fixture
def spec():
    return FeatureSpec.from_dict(CONTENT)


def test_model_inputs_are_the_contract_in_a_fixed_order(spec):
    rows = [(i.name, i.dtype, i.kind, i.table, i.transform) for i in spec.model_inputs()]
    assert rows == [
        ("history_item_id", "int32", "history", "item", None),
        ("history_scenario", "int32", "history", "scenario", None),
        ("history_author_id", "int32", "history", "author", None),
        ("history_tag", "int64", "history", "tag", "vocabulary"),
        ("history_duration_ms", "float32", "history", "duration", "quantiles"),
        ("history_age_seconds", "int32", "history", None, None),
        ("history_length", "int32", "request", None, None),
        ("candidate_item_id", "int32", "candidate", "item", None),
        ("candidate_author_id", "int32", "candidate", "author", None),
        ("candidate_tag", "int64", "candidate", "tag", "vocabulary"),
        ("candidate_duration_ms", "float32", "candidate", "duration", "quantiles"),
        ("candidate_position", "int32", "candidate", "scenario", None),
        ("candidate_age", "int32", "candidate", "duration", None),
        ("context_scenario", "int32", "request", "scenario", None),
        ("context_hour", "int32", "request", "hour", None),
        ("user_user_id", "int32", "request", "user", None),
        ("user_years", "int32", "request", "duration", None),
    ]
    by_name = {i.name: i for i in spec.model_inputs()}
    assert by_name["history_tag"].padding == -1
    assert by_name["history_duration_ms"].padding != by_name["history_duration_ms"].padding
    assert by_name["candidate_duration_ms"].field.quantiles == 8


def test_schemas_are_derived(spec):
    assert spec.event_schema() == pa.schema(
        [
            ("user_id", pa.int64()),
            ("timestamp", pa.int64()),
            ("item_id", pa.int64()),
            ("scenario", pa.int8()),
            ("note", pa.float32()),
        ]
    )
    assert spec.item_schema() == pa.schema(
        [
            ("item_id", pa.int64()),
            ("author_id", pa.int64()),
            ("tag", pa.int64()),
            ("duration_ms", pa.int32()),
            ("content", pa.list_(pa.float32(), 3)),
            ("made_ms", pa.int64()),
        ]
    )
    assert spec.impression_schema() == pa.schema(
        [
            ("user_id", pa.int64()),
            ("timestamp", pa.int64()),
            ("item_id", pa.int64()),
            ("scenario", pa.int8()),
            ("years", pa.float32()),
            ("position", pa.int8()),
            ("click", pa.int8()),
            ("watch", pa.float32()),
        ]
    )
    assert list(spec.content_fields) == ["content"]


def test_round_trips_keep_the_spec_and_its_fingerprint(spec, tmp_path):
    spec.save(tmp_path / "features.yaml")
    loaded = FeatureSpec.load(tmp_path / "features.yaml")
    assert loaded == spec == FeatureSpec.from_dict(spec.to_dict())
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert loaded.fingerprint() == spec.fingerprint()


def test_the_fingerprint_is_the_same_in_another_process_and_sees_every_change(spec):
    code = (
        "import sys, json; from laser_features import FeatureSpec;"
        "print(FeatureSpec.from_dict(json.loads(sys.argv[1])).fingerprint())"
    )
    import json

    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(CONTENT)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == spec.fingerprint()
    for path, value in [
        ("history.max_length", 5),
        ("tables.item.rows", 101),
        ("item.duration_ms.quantiles", 7),
        ("user.years.boundaries", [18, 31, 50]),
        ("context.hour.utc_offset_hours", 7),
    ]:
        assert FeatureSpec.from_dict(changed(path, value)).fingerprint() != spec.fingerprint()


MISTAKES = [
    ("event.scenario.type", "int65", "event.scenario.type is 'int65'; use one of int8"),
    ("event.scenario.type", ..., "event.scenario.type is missing"),
    ("event.scenario.table", "scenery", "unknown table 'scenery'"),
    ("event.scenario.tabel", "scenario", "unknown key 'tabel'"),
    ("event.tag", {"type": "int8"}, "item.tag uses a name that event.tag has already"),
    ("context.position", {"type": "int8", "table": "hour"}, "candidate.position uses a name"),
    ("label.scenario", {"type": "int8"}, "label.scenario uses a name that context.scenario"),
    ("context.timestamp", {"type": "int64", "table": "hour"}, "reserved name"),
    ("event.my-field", {"type": "int8"}, "not a plain name"),
    ("item.title", {"type": "string", "table": "tag"}, "string in a table with ids 'vocabulary'"),
    ("event.text", {"type": "string", "table": "author"}, "only item fields may be"),
    ("user.years.boundaries", [18, 18, 50], "18 before 18; they must increase strictly"),
    ("user.years.boundaries", [], "increasing numbers"),
    ("user.years.boundaries", [1, "x"], "holds 'x'"),
    ("user.years.boundaries", list(range(9)), "tables.duration.rows has 10 rows, too small for"),
    ("user.years.boundaries", ..., "float32, which is not an id"),
    ("user.years.quantiles", 4, "boundaries and quantiles"),
    ("item.duration_ms.quantiles", 10, "too small for the 10 buckets"),
    ("item.duration_ms.quantiles", 1, "at least 2"),
    ("item.duration_ms.table", "author", "has buckets: set ids to direct"),
    ("item.duration_ms.table", ..., "buckets but no table"),
    ("item.content.table", "tag", "a content vector has no table"),
    ("item.content.shape", [3, 3], "one width"),
    ("item.content.type", "int8", "only float item fields"),
    ("candidate.position.table", ..., "has no table"),
    ("label.click.table", "tag", "never embedded"),
    ("tables.item.rows", 1, "tables.item.rows is 1; give a whole number of at least 2"),
    ("tables.item.rows", 2**31, "at most"),
    ("tables.item.rows", True, "is True"),
    ("tables.item.width", 0, "at least 1"),
    ("tables.item.ids", "magic", "use one of direct, hash, vocabulary"),
    ("tables.spare", {"rows": 9, "width": 1, "ids": "hash"}, "used by no field"),
    ("tables.hour.rows", 24, "at least 25 rows"),
    ("context.hour.derive", "moon_phase", "use one of hour_of_day"),
    ("context.hour.type", "int8", "beside 'derive'"),
    ("context.hour.utc_offset_hours", 99, "within -14 and 14"),
    ("context.hour.time_zone", "Asia/Shanghai", "has a time_zone and utc_offset_hours"),
    (
        "context.hour",
        {"derive": "hour_of_day", "time_zone": "Berlin", "table": "hour"},
        "is 'Berlin'; give an IANA name",
    ),
    (
        "context.hour",
        {"derive": "hour_of_day", "time_zone": 8, "table": "hour"},
        "is 8; give an IANA name",
    ),
    ("context.scenario.time_zone", "UTC", "only fields with 'derive'"),
    ("candidate.age.derive", "hour_of_day", "use one of age_minutes"),
    ("item.age_of", {"derive": "hour_of_day", "table": "hour"}, "only context and candidate"),
    ("candidate.age.of", ..., "candidate.age.of is missing; name an item field"),
    ("candidate.age.of", "tag", "candidate.age.of is 'tag'; name an item field"),
    ("candidate.age.boundaries", ..., "an age is not an id"),
    ("candidate.age.table", ..., "buckets but no table"),
    ("candidate.age.type", "int32", "beside 'derive'"),
    ("context.hour.boundaries", [6, 12], "beside 'derive'"),
    ("candidate.position.of", "made_ms", "only fields with 'derive' have it"),
    ("context.scenario.utc_offset_hours", 8, "only fields with 'derive'"),
    ("event.item_id", ..., "event.item_id is missing"),
    ("event.item_id.type", "int32", "event.item_id"),
    ("user.user_id.type", "int32", "must be int64"),
    ("history.max_length", 0, "history.max_length is 0"),
    ("history.max_length", ..., "history.max_length is missing"),
    ("history.maximum", 3, "unknown key 'maximum'"),
    ("tables", {}, "tables is missing or empty"),
    ("label", ..., "label is missing or empty; add a section 'label'"),
    ("labels", {}, "unknown key 'labels'"),
    ("event.scenario", "int8", "give a mapping"),
    ("name", 3, "name is 3"),
]


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES)
def test_each_mistake_is_one_clear_line(path, value, message):
    # history.max_length removed alone leaves an empty mapping; that is the same mistake.
    content = changed(path, value)
    if path == "history.max_length" and value is ...:
        content["history"] = {"max_length": None}
    with pytest.raises(FeatureSpecError) as error:
        FeatureSpec.from_dict(content, source="features.yaml")
    text = str(error.value)
    assert message in text and text.startswith("features.yaml: ") and "\n" not in text


def test_a_name_used_twice_in_a_file_is_an_error(tmp_path):
    path = tmp_path / "features.yaml"
    path.write_text(yaml.safe_dump(CONTENT) + "name: again\n")
    with pytest.raises(FeatureSpecError, match="'name' is used twice"):
        FeatureSpec.load(path)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(FeatureSpecError, match=r"absent\.yaml: cannot be read"):
        FeatureSpec.load(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,")
    with pytest.raises(FeatureSpecError, match=r"broken\.yaml: not valid YAML"):
        FeatureSpec.load(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(FeatureSpecError, match="give a mapping"):
        FeatureSpec.load(tmp_path / "list.yaml")


def test_importing_is_light():
    code = (
        "import sys, laser_features;"
        "print([m for m in ('tensorflow', 'keras', 'pandas', 'seqvault') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
