"""Maps raw values to table rows by the vocabularies and quantiles that Transform found.

Transform writes a vocabulary per table and bucket limits per field. Here they are plain sorted
arrays and binary search, in place of Transform's own hash tables: that needs no initialised
resource, so the one function runs the same in a worker of a cluster, in evaluation and in the
SavedModel, and on padded [B, L] arrays, which Transform's graph does not take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from laser_features import FeatureSpec, ModelInput

BOUNDARIES_PREFIX = "boundaries_"
"""Transform hands a quantiles field's limits over as an output of this name and the field's."""


@dataclass(frozen=True)
class RowLookup:
    """Maps the raw inputs of ``vocabulary`` tables and ``quantiles`` fields to table rows.

    Attributes:
        vocabularies: By table, the known ids in the order of their rows: int64, the first is row 1.
        boundaries: By field, increasing float32 limits: row = 1 + number of limits at or below.
        known_rows: By table, rows of its vocabulary's ids where they are not 1, 2, 3, ...

    Example:
        >>> lookup = RowLookup({"tag": np.array([70, 50])})
        >>> lookup.ids("tag", tf.constant([50, 70, 60, -1], tf.int64)).numpy()
        array([2, 1, 0, 0], dtype=int32)
    """

    vocabularies: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    boundaries: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    known_rows: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for table, vocabulary in self.vocabularies.items():
            if len(np.unique(vocabulary)) != len(vocabulary):
                raise ValueError(f"the vocabulary of table {table!r} names an id twice")

    @classmethod
    def from_transform(cls, directory: str | None, spec: FeatureSpec) -> RowLookup:
        """Read what ``tfx_pipeline.definition.preprocessing`` made Transform find.

        Args:
            directory: Transform's output; not looked at if the spec asks for nothing.
            spec: Says which vocabularies and limits there must be.

        Raises:
            ValueError: The spec asks for something and there is no Transform output.
        """
        asked = [each for each in spec.model_inputs() if each.transform is not None]
        if not asked:
            return cls()
        if directory is None:
            names = sorted(each.name for each in asked)
            raise ValueError(f"{names} need Transform's vocabularies or quantiles; run Transform")
        import tensorflow_transform as tft  # slow to import, and only needed here

        output = tft.TFTransformOutput(directory)
        tables = {each.table for each in asked if each.table and each.transform == "vocabulary"}
        vocabularies = {
            table: np.array([int(entry) for entry in output.vocabulary_by_name(table)], np.int64)
            for table in sorted(tables)
        }
        fields = {each.field.name for each in asked if each.field and each.transform == "quantiles"}
        boundaries = {}
        if fields:
            one_example = {"history_length": tf.zeros([1, 1], tf.int64)}
            outputs = output.transform_raw_features(one_example)
            boundaries = {name: outputs[BOUNDARIES_PREFIX + name].numpy()[0] for name in fields}
        return cls(vocabularies, boundaries)

    def rows(self, model_input: ModelInput, values: tf.Tensor) -> tf.Tensor:
        """Rows of one model input, int32 and of the same shape; rows pass through."""
        if model_input.transform is None:
            return values
        assert model_input.field is not None and model_input.table is not None
        if model_input.transform == "vocabulary":
            return self.ids(model_input.table, values)
        return self.buckets(model_input.field.name, values)

    def ids(self, table: str, values: tf.Tensor) -> tf.Tensor:
        """Rows of raw int64 ids; 0 for the missing id -1 and for ids that Transform did not see."""
        vocabulary = np.asarray(self.vocabularies[table], np.int64)
        if not len(vocabulary):
            return tf.zeros_like(values, tf.int32)
        order = np.argsort(vocabulary)
        known = tf.constant(vocabulary[order])
        known_rows = self.known_rows.get(table, np.arange(1, len(vocabulary) + 1))
        rows = tf.constant(np.asarray(known_rows)[order].astype(np.int32))
        flat = tf.reshape(values, [-1])
        place = tf.minimum(tf.searchsorted(known, flat), len(vocabulary) - 1)
        found = tf.equal(tf.gather(known, place), flat) & tf.not_equal(flat, -1)
        return tf.reshape(tf.where(found, tf.gather(rows, place), 0), tf.shape(values))

    def buckets(self, name: str, values: tf.Tensor) -> tf.Tensor:
        """Rows of raw float32 values; 0 for the missing value NaN."""
        limits = tf.constant(np.asarray(self.boundaries[name], np.float32))
        flat = tf.reshape(values, [-1])
        missing = tf.math.is_nan(flat)
        row = 1 + tf.searchsorted(limits, tf.where(missing, 0.0, flat), side="right")
        return tf.reshape(tf.where(missing, 0, row), tf.shape(values))

    def with_ids(self, table: str, ids: NDArray[np.int64], rows: NDArray[np.int32]) -> RowLookup:
        """The lookup with these ids and rows of one table."""
        return replace(
            self,
            vocabularies={**self.vocabularies, table: ids},
            known_rows={**self.known_rows, table: rows},
        )

    def table_rows(
        self,
        spec: FeatureSpec,
        inputs: Mapping[str, tf.Tensor],
        known: Mapping[str, tf.Tensor] | None = None,
    ) -> dict[str, tf.Tensor]:
        """Every input of the spec with raw values turned into rows; those ``known`` are taken."""
        known = known or {}
        return {
            each.name: known[each.name]
            if each.name in known
            else self.rows(each, inputs[each.name])
            for each in spec.model_inputs()
        }


def more_rows(table: str) -> str:
    """What to do about a table that is full, for people."""
    return (
        f"raise `rows` of table {table!r} in the feature spec before the next training that begins "
        "with this one"
    )
