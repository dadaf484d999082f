"""Transform's vocabularies and quantiles, and the lookup that reads them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from laser_features import FeatureSpec
from tfx_pipeline.training.row_lookup import RowLookup


def test_ids_become_rows_in_the_order_of_the_vocabulary():
    vocabulary = np.array([70, 10, 2**60, 50])
    lookup = RowLookup({"tag": vocabulary})
    values = np.array([[70, 50], [-1, 11], [2**60, 10], [2**62, -5]])
    rows = lookup.ids("tag", tf.constant(values)).numpy()
    np.testing.assert_array_equal(rows, [[1, 4], [0, 0], [3, 2], [0, 0]])
    assert rows.dtype == np.int32
    reference = {int(key): row + 1 for row, key in enumerate(vocabulary)}
    random = np.random.default_rng(0).choice([*vocabulary, 3, -1], 500)
    expected = [reference.get(int(value), 0) for value in random]
    np.testing.assert_array_equal(lookup.ids("tag", tf.constant(random)), expected)


def test_an_empty_vocabulary_knows_nothing():
    lookup = RowLookup({"tag": np.zeros(0, np.int64)})
    np.testing.assert_array_equal(lookup.ids("tag", tf.constant([[5, -1]], tf.int64)), [[0, 0]])


def test_a_vocabulary_with_an_id_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        RowLookup({"tag": np.array([1, 1])})


def test_values_become_buckets():
    lookup = RowLookup({}, {"age": np.array([1.0, 2.5], np.float32)})
    values = np.array([0.0, 1.0, 2.0, 2.5, 9.0, np.nan, -np.inf], np.float32)
    np.testing.assert_array_equal(lookup.buckets("age", tf.constant(values)), [1, 2, 2, 3, 3, 0, 1])


def test_transform_output_is_needed_only_when_asked_for(spec, plain_spec):
    assert RowLookup.from_transform(None, plain_spec) == RowLookup()
    with pytest.raises(ValueError, match="Transform"):
        RowLookup.from_transform(None, spec)


def analyse(spec, file, folder):
    """Run the preprocessing function's analysis; returns how many rows its graphs were given."""
    import apache_beam as beam
    import tensorflow_transform.beam as tft_beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from tfx_bsl.public import tfxio

    from tfx_pipeline.definition.example_schema import make_schema
    from tfx_pipeline.definition.preprocessing import preprocessing_fn

    source = tfxio.TFExampleRecord(file, schema=make_schema(spec))
    config = {"feature_spec": spec.to_dict()}
    options = PipelineOptions(
        ["--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1"]
    )
    pipeline = beam.Pipeline(options=options)
    with tft_beam.Context(str(folder / "temp")):
        data = pipeline | source.BeamSource()
        fn = (data, source.TensorAdapterConfig()) | tft_beam.AnalyzeDataset(
            lambda inputs: preprocessing_fn(inputs, config)
        )
        _ = fn | tft_beam.WriteTransformFn(str(folder / "transform"))
        result = pipeline.run()
        result.wait_until_finish()
    counters = result.metrics().query()["counters"]
    return sum(each.committed for each in counters if each.key.metric.name == "num_instances")


def test_five_vocabularies_take_no_more_passes_than_one(spec, write_files, tmp_path):
    """A pass for each vocabulary would read all rows as often as there are vocabularies."""
    given = spec.to_dict()
    for number in range(2, 6):
        given["tables"][f"tag{number}"] = given["tables"]["tag"]
        given["item"][f"tag{number}"] = {**given["item"]["tag"], "table": f"tag{number}"}
    five = FeatureSpec.from_dict(given)
    passes = {}
    for name, each in (("one", spec), ("five", five)):
        folder = tmp_path / name
        folder.mkdir()
        (file,) = write_files(folder, each, files=1, requests=20)
        passes[name] = analyse(each, file, folder)
    lookup = RowLookup.from_transform(str(tmp_path / "five" / "transform"), five)
    assert sorted(lookup.vocabularies) == ["tag", "tag2", "tag3", "tag4", "tag5"]
    assert passes == {"one": 20, "five": 20}  # each row once


def test_transform_finds_vocabularies_and_quantiles(spec, write_files, tmp_path):
    from tfx_pipeline.training.parsing import parse_examples

    files = write_files(tmp_path, spec, files=1, requests=60)
    analyse(spec, files[0], tmp_path)
    lookup = RowLookup.from_transform(str(tmp_path / "transform"), spec)
    records = list(tf.data.TFRecordDataset(files[0], "GZIP").as_numpy_iterator())
    batch = parse_examples(tf.constant(records), spec)
    tags = np.concatenate(
        [batch["history_tag"].numpy().ravel(), batch["candidate_tag"].numpy().ravel()]
    )
    found, counts = np.unique(tags[tags != -1], return_counts=True)
    vocabulary = lookup.vocabularies["tag"]
    assert sorted(vocabulary) == sorted(found)
    by_id = dict(zip(found, counts, strict=True))
    assert [by_id[entry] for entry in vocabulary] == sorted(counts, reverse=True)

    values = np.concatenate(
        [
            batch["history_duration_ms"].numpy().ravel(),
            batch["candidate_duration_ms"].numpy().ravel(),
        ]
    )
    values = values[~np.isnan(values)]
    shares = (values[:, None] < lookup.boundaries["duration_ms"]).mean(axis=0)
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.75], atol=0.03)
    rows = lookup.table_rows(spec, batch)
    assert all(value.dtype == tf.int32 for value in rows.values())
    assert rows["history_duration_ms"].numpy().max() == 4
