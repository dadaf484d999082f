"""The content vectors that lie beside the Examples of a join.

The model holds them in a frozen table, so they are no features of an Example. Whoever trains on the
Examples finds them here, wherever the dataset lay: a compiled pipeline is told at run time.
"""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from components.seqvault_example_gen.errors import ImpressionsError
from components.seqvault_example_gen.impressions import open_parquet
from laser_features import FeatureSpec

FOLDER, FILE = "content", "items.parquet"
_ROWS = 65536


def content_file(examples: str) -> str:
    """Where the content vectors of an artifact of Examples lie.

    Example:
        >>> content_file("s3://bucket/examples/7")
        's3://bucket/examples/7/content/items.parquet'
    """
    return f"{examples.rstrip('/')}/{FOLDER}/{FILE}"


def write_content(dataset: str, spec: FeatureSpec, examples: str) -> None:
    """Copy the ids and content vectors of a dataset's items; nothing if the spec has none.

    Args:
        dataset: Folder or URI of the dataset.
        spec: Its feature spec.
        examples: Folder or URI of the artifact.

    Raises:
        ImpressionsError: The items cannot be read, or lack a content field.
    """
    if not spec.content_fields:
        return
    source = os.path.join(dataset, "items.parquet")
    items, columns = open_parquet(source), ["item_id", *spec.content_fields]
    missing = sorted(set(columns) - set(items.schema_arrow.names))
    if missing:
        raise ImpressionsError(
            f"{source} has no column {missing[0]!r}, which the feature spec names: prepare the "
            "dataset again"
        )
    schema = pa.schema([items.schema_arrow.field(name) for name in columns])
    target = content_file(examples)
    if not FileSystems.exists(os.path.dirname(target)):
        FileSystems.mkdirs(os.path.dirname(target))
    with FileSystems.create(target) as file, pq.ParquetWriter(file, schema) as writer:
        for batch in items.iter_batches(_ROWS, columns=columns):
            writer.write_table(pa.Table.from_batches([batch], schema))
