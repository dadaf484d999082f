"""Prepared datasets that are named by URIs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from components.file_systems import download, fingerprint
from components.uris import scheme_of
from tfx_pipeline.datasets.prepared_dataset import SPEC, SUMMARY, TABLES
from tfx_pipeline.fingerprint import combine

_FILES = [SUMMARY, SPEC, *(f"{table}.parquet" for table in TABLES)]
_MADE_FROM = "made_from"


def dataset_folder(where: str | Path) -> Path:
    """A prepared dataset's folder; one named by a URI is copied once into this machine's cache.

    It is copied again when a file of it has another size or time. The cache is
    ``$XDG_CACHE_HOME/laser``, or ``~/.cache/laser``.

    Raises:
        LocationError: No file system answers the URI, or a file is not there.
    """
    if scheme_of(where) is None:
        return Path(where)
    made_from = fingerprint(str(where), _FILES)
    uri = str(where).rstrip("/")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "laser"
    folder = cache / combine(uri)
    mark = folder / _MADE_FROM
    if mark.is_file() and mark.read_text(encoding="utf-8") == made_from:
        return folder
    partial = cache / f".{folder.name}.{os.getpid()}.partial"
    partial.mkdir(parents=True)
    try:
        download(uri, _FILES, partial)
        (partial / _MADE_FROM).write_text(made_from, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
