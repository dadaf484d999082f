"""The Beam pipeline behind SeqVaultExampleGen."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics.metric import Metrics, MetricsFilter
from google.protobuf import struct_pb2
from tfx import types
from tfx.components.example_gen.base_example_gen_executor import BaseExampleGenExecutor
from tfx.components.util import examples_utils
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import proto_utils

from components.heartbeat import heartbeat
from components.seqvault_example_gen.content_file import write_content
from components.seqvault_example_gen.errors import ImpressionsError
from components.seqvault_example_gen.impressions import (
    ROW,
    check_columns,
    check_rows,
    group_requests,
    open_parquet,
    without_some_negatives,
)
from components.seqvault_example_gen.join import IDS, OUTSIDE, OUTSIDE_EXAMPLE, join_requests
from components.seqvault_example_gen.join_progress import PROGRESS
from components.seqvault_example_gen.open_store import open_store
from components.seqvault_example_gen.settings import Settings
from components.seqvault_example_gen.shards import TRAIN_SPLIT, number_of_shards, shard_of_users
from components.seqvault_example_gen.time_range import TimeRange
from laser_features import FeatureSpec

NAMESPACE = "SeqVaultExampleGen"
DEAD_LETTERS = "impressions.jsonl"
_DEAD = "dead"
_EXAMPLES_SHOWN = 3


class SeqVaultExampleGenExecutor(BaseExampleGenExecutor):
    """Reads, checks, groups and joins impressions; writes one file per split and shard.

    Content vectors of the items are copied beside the splits.

    Files are written here, not by the base class's ``WriteSplit``, which shuffles at random: with
    the same input every file is the same, byte for byte, and so a training run can be repeated.
    """

    def GetInputSourceToExamplePTransform(self) -> beam.PTransform:
        """Abstract in the base class and never called: the splits are made by time."""
        raise TypeError("SeqVaultExampleGen makes its splits in GenerateExamplesByBeam")

    def GenerateExamplesByBeam(
        self, pipeline: beam.Pipeline, exec_properties: dict[str, Any]
    ) -> dict[str, beam.PCollection]:
        """``{split: PCollection of (shard number, serialized Examples in order)}``."""
        settings = settings_of(exec_properties)
        dataset = exec_properties[standard_component_specs.INPUT_BASE_KEY]
        path = os.path.join(dataset, "impressions.parquet")
        spec = FeatureSpec.from_dict(settings.feature_spec)
        log = open_parquet(path)
        check_columns(log.schema_arrow, spec, path)
        shards = number_of_shards(log.metadata.num_rows, settings.rows_per_file)
        rows = [log.metadata.row_group(group).num_rows for group in range(log.num_row_groups)]
        first_rows = np.concatenate([[0], np.cumsum(rows)])[:-1].tolist()
        checked = (
            pipeline
            | "RowGroups" >> beam.Create(list(enumerate(first_rows)), reshuffle=False)
            | "SpreadRowGroups" >> beam.Reshuffle()
            | "ReadAndCheck"
            >> beam.ParDo(_ReadAndCheck(path, settings, shards)).with_outputs(_DEAD, main="rows")
        )
        _write_dead_letters(checked[_DEAD], settings.dead_letters)
        tags = [f"split_{name}" for name in settings.splits]
        joined = (
            checked["rows"]
            | "GroupShards" >> beam.GroupByKey()
            | "Join" >> beam.ParDo(_Join(settings)).with_outputs(*tags)
        )
        return {name: joined[f"split_{name}"] for name in settings.splits}

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Run the join, write the splits, then judge what was counted.

        Raises:
            ImpressionsError: Unreadable input, too many malformed rows, or an empty split.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        settings = settings_of(exec_properties)
        examples = output_dict[standard_component_specs.EXAMPLES_KEY]
        artifact = artifact_utils.get_single_instance(examples)
        artifact.split_names = artifact_utils.encode_split_names(list(settings.splits))
        pipeline = self._make_beam_pipeline()
        for name, split in self.GenerateExamplesByBeam(pipeline, exec_properties).items():
            folder = artifact_utils.get_split_uri(examples, name)
            # Here, once: workers that each look and then make it would trip over one another.
            if not FileSystems.exists(folder):
                FileSystems.mkdirs(folder)
            _ = split | f"Write[{name}]" >> beam.ParDo(_WriteFile(folder))
        PROGRESS.reset()
        with heartbeat("join", progress=PROGRESS.read):
            result = pipeline.run()
            result.wait_until_finish()
        counts = _counts(result)
        check_counts(counts, settings)
        dataset = exec_properties[standard_component_specs.INPUT_BASE_KEY]
        write_content(dataset, FeatureSpec.from_dict(settings.feature_spec), artifact.uri)
        for name, count in sorted(counts.items()):
            if name.startswith((IDS, OUTSIDE_EXAMPLE)):
                continue
            artifact.set_int_custom_property(f"count_{_property_name(name)}", count)
        artifact.set_float_custom_property("negative_rate", settings.negative_rate)
        examples_utils.set_payload_format(artifact, example_gen_pb2.FORMAT_TF_EXAMPLE)
        examples_utils.set_file_format(artifact, "tfrecords_gzip")


def check_counts(counts: Counter[str], settings: Settings) -> None:
    """Raise if too many rows are malformed or a split is empty.

    Raises:
        ImpressionsError: Shows the reasons and some of the rows.
    """
    rows = counts["rows_read"]
    bad = {name: count for name, count in counts.items() if name.startswith("malformed: ")}
    total = sum(bad.values())
    path = os.path.join(settings.dead_letters, DEAD_LETTERS)
    if total > settings.max_bad_fraction * rows:
        reasons = ", ".join(
            f"{count} x {name.removeprefix('malformed: ')}"
            for name, count in sorted(bad.items(), key=lambda entry: -entry[1])
        )
        shown = "".join(f"\n  {line}" for line in _first_lines(path))
        raise ImpressionsError(
            f"{total} of {rows} impressions ({total / rows:.1%}) are malformed, above the bound of "
            f"{settings.max_bad_fraction:.1%}: {reasons}. All are in {path}; some of them:{shown}\n"
            "Correct the log, or raise max_bad_fraction to go on without these rows."
        )
    _check_outside(counts, settings)
    for name, part in settings.splits.items():
        if not counts[f"requests_{name}"]:
            raise ImpressionsError(
                f"split {name} ({part}) holds none of the {rows} impressions: give time ranges "
                "that the log covers"
            )


def _check_outside(counts: Counter[str], settings: Settings) -> None:
    """Raise if too many ids lie outside the table of their input: the model would not see them."""
    spec = FeatureSpec.from_dict(settings.feature_spec)
    tables = {entry.name: spec.tables[entry.table] for entry in spec.model_inputs() if entry.table}
    problems = []
    for name, table in tables.items():
        outside, ids = counts[OUTSIDE + name], counts[IDS + name]
        if outside > settings.max_outside_fraction * ids:
            start = f"{OUTSIDE_EXAMPLE}{name}: "
            examples = sorted(each.removeprefix(start) for each in counts if each.startswith(start))
            problems.append(
                f"\n  {name}: {outside:,} of {ids:,} ids ({outside / ids:.1%}) lie outside table "
                f"{table.name!r}, which takes 0 to {table.rows - 2:,}: {', '.join(examples[:3])}"
            )
    if problems:
        raise ImpressionsError(
            "ids outside their table would count as missing, above the bound of "
            f"{settings.max_outside_fraction:.1%}:{''.join(problems)}\n"
            "Give the table enough rows, or ids of kind hash or vocabulary, in the feature spec; "
            "or raise max_outside_fraction to go on."
        )


class _ReadAndCheck(beam.DoFn):
    """A row group's position in, usable rows by shard (Arrow bytes) and dead letters out."""

    def __init__(self, path: str, settings: Settings, shards: int) -> None:
        self._path = path
        self._settings = settings
        self._shards = shards

    def setup(self) -> None:
        self._spec = FeatureSpec.from_dict(self._settings.feature_spec)

    def process(self, element: tuple[int, int]) -> Iterator[Any]:
        group, first_row = element
        try:
            table = open_parquet(self._path).read_row_group(group)
        except (OSError, pa.ArrowException) as error:
            raise ImpressionsError(
                f"{self._path}: row group {group} cannot be read ({error}): "
                "prepare the dataset again"
            ) from error
        checked = check_rows(table, first_row, self._spec)
        _count("rows_read", table.num_rows)
        for row, reason in zip(checked.bad.to_pylist(), checked.reasons, strict=True):
            _count(f"malformed: {reason}", 1)
            position = row.pop(ROW)
            letter = {"reason": reason, "row": position, "impression": row}
            yield beam.pvalue.TaggedOutput(_DEAD, json.dumps(letter, default=str))
        yield from self._by_shard(checked.good)

    def _by_shard(self, good: pa.Table) -> Iterator[tuple[tuple[str, int], bytes]]:
        times = good.column("timestamp").to_numpy()
        users = good.column("user_id").to_numpy()
        shard = shard_of_users(users, self._shards)
        outside = np.ones(len(times), bool)
        for name, part in self._settings.splits.items():
            within = (times >= part.start) & (times < part.end)
            outside &= ~within
            for number in np.unique(shard[within]):
                rows = good.filter(pa.array(within & (shard == number)))
                if name == TRAIN_SPLIT:
                    rows = self._sampled(rows)
                PROGRESS.found(rows.num_rows)
                yield (name, int(number)), _to_bytes(rows)
        _count("dropped: outside every split", int(outside.sum()))

    def _sampled(self, rows: pa.Table) -> pa.Table:
        label = next(iter(self._spec.labels))
        kept = without_some_negatives(rows, label, self._settings.negative_rate)
        _count("dropped: negatives that were not drawn", rows.num_rows - kept.num_rows)
        return kept


class _Join(beam.DoFn):
    """One shard of one split in, its serialized Examples out, tagged with the split."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def setup(self) -> None:
        self._spec = FeatureSpec.from_dict(self._settings.feature_spec)
        self._store = open_store(self._settings.store)

    def process(self, element: tuple[tuple[str, int], Iterable[bytes]]) -> Iterator[Any]:
        (split, shard), parts = element
        table = pa.concat_tables([_from_bytes(part) for part in parts])
        if not table.num_rows:
            return
        requests = group_requests(table, self._spec)
        examples: list[bytes] = []
        for serialized, counts in join_requests(requests, self._store, self._spec):
            examples.extend(serialized)
            PROGRESS.joined(counts["impressions"])
            for name, count in counts.items():
                _count(name, count)
        _count(f"requests_{split}", len(examples))
        _count(f"impressions_{split}", table.num_rows)
        yield beam.pvalue.TaggedOutput(f"split_{split}", (shard, examples))

    def teardown(self) -> None:
        self._store.close()


class _WriteFile(beam.DoFn):
    """Writes a shard into an existing folder, complete or not at all, as gzipped TFRecords."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, element: tuple[int, list[bytes]]) -> None:
        shard, examples = element
        final = FileSystems.join(self._folder, f"data_tfrecord-{shard:05d}.gz")
        temporary = FileSystems.join(os.path.dirname(self._folder), f".{uuid.uuid4().hex}.gz")
        write_records(temporary, examples)
        if FileSystems.exists(final):
            FileSystems.delete([final])
        FileSystems.rename([temporary], [final])


def write_records(path: str, records: list[bytes]) -> None:
    """Write a gzipped TFRecord file."""
    import tensorflow as tf

    # Level 1 costs a third of level 6's time for a tenth more bytes.
    options = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=1)
    with tf.io.TFRecordWriter(path, options) as writer:
        for record in records:
            writer.write(record)


def settings_of(exec_properties: dict[str, Any]) -> Settings:
    """What a join was told: the component's settings, and what a run set in their place."""
    config = example_gen_pb2.CustomConfig()
    proto_utils.json_to_proto(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY], config)
    content = struct_pb2.Struct()
    config.custom_config.Unpack(content)
    settings = Settings.from_json(content["settings"])
    # A Kubeflow run may set these; another runner has them in the settings alone.
    if store := exec_properties.get("store"):
        settings = replace(settings, store=store)
    if splits := exec_properties.get("splits"):
        ranges = {name: TimeRange(*part) for name, part in json.loads(splits).items()}
        settings = replace(settings, splits=ranges)
    return settings


def _write_dead_letters(letters: beam.PCollection, folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    _ = letters | "WriteDeadLetters" >> beam.io.WriteToText(
        os.path.join(folder, DEAD_LETTERS), num_shards=1, shard_name_template=""
    )


def _first_lines(path: str) -> list[str]:
    with FileSystems.open(path) as file:
        lines = file.read(1 << 16).decode(errors="replace").splitlines()
    return lines[:_EXAMPLES_SHOWN]


def _counts(result: Any) -> Counter[str]:
    found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    return Counter({entry.key.metric.name: entry.result for entry in found if entry.result})


def _count(name: str, number: int) -> None:
    Metrics.counter(NAMESPACE, name).inc(number)


def _property_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _from_bytes(buffer: bytes) -> pa.Table:
    return pa.ipc.open_stream(buffer).read_all()
