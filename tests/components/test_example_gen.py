"""SeqVaultExampleGen's Beam pipeline, run as TFX runs it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from google.protobuf import json_format
from tfx.dsl.components.base import base_beam_executor
from tfx.types import standard_artifacts

from components.seqvault_example_gen.component import SeqVaultExampleGen
from components.seqvault_example_gen.content_file import content_file
from components.seqvault_example_gen.errors import ImpressionsError
from components.seqvault_example_gen.executor import SeqVaultExampleGenExecutor
from components.seqvault_example_gen.settings import Settings
from components.seqvault_example_gen.time_range import TimeRange
from seqvault.service.server import Server
from tfx_pipeline.config import LOCAL_BEAM_ARGS

HOUR = 3_600_000


@pytest.fixture
def run(tmp_path, spec, vault, now):
    """Run the executor on a dataset's folder; returns (artifact, examples by split)."""

    def execute(dataset, output="examples", beam_args=LOCAL_BEAM_ARGS, **changes):
        settings = Settings(
            **{
                "feature_spec": spec.to_dict(),
                "store": str(tmp_path / "store"),
                "splits": {
                    "train": TimeRange(now - HOUR, now + HOUR),
                    "eval": TimeRange(now + HOUR, now + 2 * HOUR),
                },
                "dead_letters": str(tmp_path / "dead_letters"),
                "max_bad_fraction": 0.5,
                "max_outside_fraction": 0.0,
                "rows_per_file": 1000,
                "fingerprint": "",
                **changes,
            }
        )
        component = SeqVaultExampleGen(str(dataset), settings)
        properties = {
            name: value if isinstance(value, (str, int)) or value is None
            else json_format.MessageToJson(value)
            for name, value in component.exec_properties.items()
        }  # fmt: skip
        artifact = standard_artifacts.Examples()
        artifact.uri = str(tmp_path / output)
        context = base_beam_executor.BaseBeamExecutor.Context(
            beam_pipeline_args=list(beam_args), tmp_dir=str(tmp_path / "tmp"), unique_id="1"
        )
        SeqVaultExampleGenExecutor(context).Do({}, {"examples": [artifact]}, properties)
        return artifact, {
            split: [record for file in files(artifact, split) for record in read(file)]
            for split in artifact.splits
        }

    return execute


def files(artifact, split):
    return sorted(tf.io.gfile.glob(f"{artifact.uri}/Split-{split}/*"))


def read(file):
    return list(tf.data.TFRecordDataset(file, compression_type="GZIP").as_numpy_iterator())


def times(examples):
    parsed = [tf.train.Example.FromString(each) for each in examples]
    return sorted(each.features.feature["request_time_ms"].int64_list.value[0] for each in parsed)


def test_splits_are_time_ranges_whose_end_is_excluded(run, write_dataset, table_of, row, now):
    rows = [row(user=user, time=now + at) for at in (-HOUR - 1, -HOUR, HOUR - 1, HOUR, 2 * HOUR)
            for user in (1, 2)]  # fmt: skip
    artifact, examples = run(write_dataset(table_of(rows)))
    assert times(examples["train"]) == [now - HOUR] * 2 + [now + HOUR - 1] * 2
    assert times(examples["eval"]) == [now + HOUR] * 2
    assert artifact.get_int_custom_property("count_rows_read") == 10
    assert artifact.get_int_custom_property("count_dropped__outside_every_split") == 4
    assert artifact.get_int_custom_property("count_requests_train") == 4
    assert artifact.get_int_custom_property("count_impressions_eval") == 2


def test_ids_outside_their_table_end_the_run_with_examples(run, write_dataset, table_of, row, now):
    rows = [row(time=now + HOUR), *(row(item=item) for item in (10, 10**6, 10**6 + 1, -7))]
    rows += [row(time=now + 1, position=4), row(time=now + 2, position=5)]
    dataset = write_dataset(table_of(rows))
    with pytest.raises(ImpressionsError) as caught:
        run(dataset)
    message = str(caught.value)
    assert (
        "candidate_item_id: 3 of 7 ids (42.9%) lie outside table 'item', which takes 0 to 98"
        in (message)
    )
    assert "-7, 1000000, 1000001" in message
    assert "candidate_position: 1 of 7 ids (14.3%)" in message and ": 5" in message
    assert "max_outside_fraction" in message and "hash or vocabulary" in message
    artifact, _ = run(dataset, "again", max_outside_fraction=0.5)
    assert artifact.get_int_custom_property("count_outside__candidate_item_id") == 3
    assert not any(
        name.startswith("count_ids") for name in artifact.mlmd_artifact.custom_properties
    )


def test_a_request_cut_by_row_groups_stays_one_example(run, write_dataset, table_of, row, now):
    rows = [row(user=2, time=now + HOUR)]
    rows += [row(item=item) for item in (10, 11, 12, 13, 14)]
    _, examples = run(write_dataset(table_of(rows), row_group_size=2))
    (example,) = [tf.train.Example.FromString(each) for each in examples["train"]]
    assert example.features.feature["candidate_item_id"].int64_list.value == [11, 12, 13, 14, 15]


def test_the_same_input_gives_the_same_bytes(run, write_dataset, table_of, row, now):
    rows = [row(user=user % 7, time=now + user * 1000, item=10 + user % 9) for user in range(90)]
    rows += [row(time=now + HOUR)]
    dataset = write_dataset(table_of(rows), row_group_size=13)
    first, _ = run(dataset, "first", rows_per_file=20)
    second, _ = run(dataset, "second", rows_per_file=20)
    assert len(files(first, "train")) > 1
    for one, other in zip(files(first, "train"), files(second, "train"), strict=True):
        assert read(one) == read(other)


def test_workers_of_their_own_join_from_a_server(run, write_dataset, table_of, row, now, vault):
    """As on Flink or Dataflow: other processes, that share no folder with the store."""
    rows = [row(user=user % 3, time=now + user * 1000, item=10 + user % 9) for user in range(30)]
    dataset = write_dataset(table_of([*rows, row(time=now + HOUR)]), row_group_size=13)
    local, _ = run(dataset, "local", rows_per_file=20)
    workers = ["--runner=FnApiRunner", "--direct_running_mode=multi_processing"]
    workers += ["--direct_num_workers=2", "--sdk_container_image=local"]
    server = Server(vault, merge_seconds=0)
    try:
        address = f"localhost:{server.port}"
        far, _ = run(dataset, "far", workers, store=address, rows_per_file=20)
    finally:
        server.stop(0)
    for split in ("train", "eval"):
        pairs = zip(files(local, split), files(far, split), strict=True)
        assert all(read(one) == read(other) for one, other in pairs)
    assert far.get_int_custom_property("count_unknown_users") > 0


def test_malformed_rows_go_to_the_dead_letters_with_their_reason(
    run, write_dataset, table_of, row, now, tmp_path
):
    rows = [row(), row(user=None, item=77), row(time=now // 1000), row(time=now + HOUR)]
    artifact, examples = run(write_dataset(table_of(rows)))
    assert len(examples["train"]) == 1
    lines = (tmp_path / "dead_letters" / "impressions.jsonl").read_text().splitlines()
    letters = sorted((json.loads(line) for line in lines), key=lambda letter: letter["row"])
    assert [letter["reason"] for letter in letters] == [
        "no user",
        "timestamp looks like seconds, not milliseconds",
    ]
    assert letters[0]["row"] == 1 and letters[0]["impression"]["item_id"] == 77
    assert artifact.get_int_custom_property("count_malformed__no_user") == 1


def test_too_many_malformed_rows_end_the_run_with_examples(run, write_dataset, table_of, row, now):
    rows = [row(), row(time=now + HOUR), row(user=None, item=77), row(time=now // 1000)]
    dataset = write_dataset(table_of(rows))
    run(dataset, "within", max_bad_fraction=0.5)
    with pytest.raises(ImpressionsError) as caught:
        run(dataset, "above", max_bad_fraction=0.49)
    message = str(caught.value)
    assert "2 of 4 impressions (50.0%) are malformed, above the bound of 49.0%" in message
    assert "1 x no user" in message and '"item_id": 77' in message


def test_a_damaged_row_group_is_named(run, write_dataset, table_of, row, now):
    rows = [row(time=now + at) for at in (*range(2000), HOUR)]
    dataset = write_dataset(table_of(rows), row_group_size=500)
    path = dataset / "impressions.parquet"
    content = bytearray(path.read_bytes())
    content[40:400] = b"?" * 360
    path.write_bytes(content)
    with pytest.raises(ImpressionsError, match=r"impressions.parquet: row group 0 cannot be read"):
        run(dataset)


def test_a_split_without_impressions_ends_the_run(run, write_dataset, table_of, row):
    with pytest.raises(ImpressionsError, match=r"split eval \(2022-04-15 .* holds none of the 1"):
        run(write_dataset(table_of([row()])))


def test_overlapping_splits_are_refused(spec, now):
    ranges = {"train": TimeRange(now, now + 10), "eval": TimeRange(now + 9, now + 20)}
    with pytest.raises(ValueError, match=r"splits train .* and eval .* overlap"):
        Settings(spec.to_dict(), "store", ranges, "dead", 0.01, 0.01, 100, "")


def test_settings_survive_the_journey_as_text(spec, now):
    ranges = {"train": TimeRange(now, now + 10), "eval": TimeRange(now + 10, now + 20)}
    settings = Settings(spec.to_dict(), "store", ranges, "dead", 0.01, 0.01, 100, "abc")
    assert Settings.from_json(settings.to_json()) == settings


def test_a_time_range_in_seconds_is_refused():
    with pytest.raises(ValueError, match=r"looks like seconds"):
        TimeRange(1_650_000_000, 1_650_000_001)


def test_content_vectors_of_the_items_lie_beside_the_splits(
    run, write_dataset, table_of, row, now, spec
):
    told = spec.to_dict()
    told["item"]["vector"] = {"type": "float32", "shape": [2]}
    dataset = write_dataset(table_of([row(time=now), row(time=now + HOUR)]))
    with pytest.raises(ImpressionsError, match=r"items.parquet cannot be read"):
        run(dataset, feature_spec=told)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0], pa.float32()), 2)
    items = pa.table({"item_id": [7, 9], "title": ["a", "b"], "vector": vectors})
    pq.write_table(items, dataset / "items.parquet")
    artifact, _ = run(dataset, feature_spec=told)
    found = pq.read_table(content_file(artifact.uri))
    assert found.equals(items.select(["item_id", "vector"]))
    pq.write_table(items.drop(["vector"]), dataset / "items.parquet")
    with pytest.raises(ImpressionsError, match=r"has no column 'vector'"):
        run(dataset, feature_spec=told)
