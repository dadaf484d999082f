"""From a folder of published files, or from nothing, to a prepared dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seqvault.progress import Progress, no_progress
from tfx_pipeline.datasets.dataset_tables import DatasetTables
from tfx_pipeline.datasets.ebnerd import read_ebnerd
from tfx_pipeline.datasets.generator import generate
from tfx_pipeline.datasets.generator_settings import GeneratorSettings
from tfx_pipeline.datasets.kuairand import (
    is_kuairand,
    read_kuairand_csv,
    read_kuairand_parquet,
)
from tfx_pipeline.datasets.logged_impressions import is_impression_log, read_logged_impressions
from tfx_pipeline.datasets.movielens import read_movielens_csv, read_movielens_parquet
from tfx_pipeline.datasets.own_tables import is_own_tables, read_own_tables
from tfx_pipeline.datasets.prepared_dataset import SUMMARY, PreparedDataset
from tfx_pipeline.errors import DatasetError

Reader = Callable[[Path, Progress], DatasetTables]
_KNOWN = (
    "KuaiRand (log_standard_*.csv), MovieLens (ratings.csv), EB-NeRD (articles.parquet), "
    "events.parquet with the columns of one of the first two, or your own features.yaml, "
    "events.parquet, items.parquet and impressions.parquet or a gateway's log"
)


def prepare(
    source: str | Path | None,
    destination: str | Path,
    progress: Progress = no_progress,
    generator: GeneratorSettings | None = None,
    store: str | Path | None = None,
) -> PreparedDataset:
    """Write a prepared dataset.

    Args:
        source: A folder of published files; what is in it decides the adapter. None generates a
            dataset. A folder that is a prepared dataset already is checked and copied.
        destination: Folder of the prepared dataset; an older one there is replaced.
        progress: Called with stage, work done and whole work.
        generator: Size and seed of a generated dataset.
        store: A SeqVault, folder or address, whose events label the impressions that a gateway
            logged; only a source with such a log takes one.

    Returns:
        The dataset at ``destination``.

    Raises:
        DatasetError: One line that says what is wrong and what to do. Nothing is written then.
    """
    if store is not None and (source is None or not is_impression_log(Path(source))):
        raise DatasetError(
            "a store gives the events of impressions that a gateway logged, and the source has no "
            "such log: leave the store out"
        )
    if source is None:
        tables = generate(generator or GeneratorSettings(), progress)
        return PreparedDataset.write(tables, destination, progress)
    folder = Path(source)
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; give one with {_KNOWN}")
    if (folder / SUMMARY).is_file():
        return PreparedDataset.load(folder).copy(destination)
    if is_impression_log(folder):
        tables = read_logged_impressions(folder, progress, store)
        return PreparedDataset.write(tables, destination, progress)
    return PreparedDataset.write(find_reader(folder)(folder, progress), destination, progress)


def find_reader(folder: Path) -> Reader:
    """The adapter that a folder's files ask for.

    Raises:
        DatasetError: No adapter knows them.
    """
    if is_own_tables(folder):
        return read_own_tables
    if is_kuairand(folder):
        return read_kuairand_csv
    if (folder / "ratings.csv").is_file():
        return read_movielens_csv
    if (folder / "articles.parquet").is_file():
        return read_ebnerd
    events = folder / "events.parquet"
    if not events.is_file():
        found = sorted(entry.name for entry in folder.iterdir())[:10]
        raise DatasetError(
            f"{folder} holds no dataset that is known; it has {found}: give {_KNOWN}"
        )
    try:
        names = pq.read_schema(events).names
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"{events} cannot be read as Parquet ({error}); get it again") from error
    if "long_view" in names:
        return read_kuairand_parquet
    if "rating" in names:
        return read_movielens_parquet
    raise DatasetError(f"{events} has the columns {names}, which no adapter knows; give {_KNOWN}")
