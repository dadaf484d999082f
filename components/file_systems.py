"""Folders that are named by URIs: which file system answers, and what is missing if none does."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from components.uris import scheme_of

_NATIVE = ("file", "gs", "gcs", "s3", "hdfs")
# Of others, the packages that fsspec finds them in.
_PACKAGES = {"abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "oss": "ossfs", "webhdfs": "fsspec"}
_PART_BYTES = 8 << 20


class LocationError(ValueError):
    """A URI that no file system here can answer, or whose files cannot be read or written."""


def open_file_system(where: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or a URI, and the path within it.

    ``s3://``, ``gs://`` and ``hdfs://`` are pyarrow's; an endpoint of one's own for S3 is taken
    from ``AWS_ENDPOINT_URL``. Others are fsspec's, where it and its plug-in are installed.

    Raises:
        LocationError: Names the package that is missing, or what the file system says.
    """
    scheme = scheme_of(where)
    if scheme is None:
        return fs.LocalFileSystem(), os.path.abspath(where)
    rest = where.partition("://")[2]
    if not rest.strip("/"):
        raise LocationError(f"{where} names no bucket or folder: give {scheme}://BUCKET/FOLDER")
    if scheme not in _NATIVE:
        return _of_fsspec(where, scheme), rest
    try:
        if scheme == "s3" and (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
            protocol, _, address = endpoint.rpartition("://")
            own = {"endpoint_override": address, "scheme": protocol or "https"}
            return fs.S3FileSystem(**own), rest.strip("/")
        uri = where.replace("gcs://", "gs://", 1)
        file_system, path = fs.FileSystem.from_uri(uri)
        return file_system, path
    except (OSError, pa.ArrowException) as error:
        raise LocationError(f"{where} cannot be opened ({_line(error)})") from error


def upload(folder: str, where: str) -> None:
    """Copy a folder to a URI; ``saved_model.pb`` comes last: whoever waits for it waits for all.

    What an interrupted copy left there is deleted again.

    Raises:
        LocationError: It cannot be written there.
    """
    target, root = open_file_system(where)
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    files.sort(key=lambda path: path.name == "saved_model.pb")
    try:
        for path in files:
            name = f"{root}/{path.relative_to(folder).as_posix()}"
            target.create_dir(os.path.dirname(name), recursive=True)
            with path.open("rb") as source, target.open_output_stream(name) as out:
                while block := source.read(_PART_BYTES):
                    out.write(block)
    except BaseException as error:
        with contextlib.suppress(OSError, pa.ArrowException):
            target.delete_dir(root)
        if isinstance(error, (OSError, pa.ArrowException)):
            raise LocationError(f"{where} cannot be written ({_line(error)})") from error
        raise


def download(where: str, names: list[str], folder: Path) -> None:
    """Copy some files of a URI into a folder, which exists.

    Raises:
        LocationError: One is not there, or cannot be read.
    """
    source, root = open_file_system(where)
    for name in names:
        try:
            with (
                source.open_input_stream(f"{root}/{name}") as file,
                (folder / name).open("wb") as out,
            ):
                while block := file.read(_PART_BYTES):
                    out.write(block)
        except (OSError, pa.ArrowException) as error:
            raise LocationError(f"{where}/{name} cannot be read ({_line(error)})") from error


def fingerprint(where: str, names: list[str]) -> str:
    """Sizes and times of some files of a URI: another text when one was written again.

    Raises:
        LocationError: One is not there.
    """
    source, root = open_file_system(where)
    try:
        found = source.get_file_info([f"{root}/{name}" for name in names])
    except (OSError, pa.ArrowException) as error:
        raise LocationError(f"{where} cannot be read ({_line(error)})") from error
    for name, info in zip(names, found, strict=True):
        if info.type != fs.FileType.File:
            raise LocationError(f"{where} holds no {name}: give the URI of a prepared dataset")
    return repr([where.rstrip("/"), [(info.size, info.mtime_ns) for info in found]])


def _of_fsspec(where: str, scheme: str) -> fs.FileSystem:
    package = _PACKAGES.get(scheme, "fsspec and its plug-in for it")
    try:
        import fsspec

        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except ImportError as error:
        raise LocationError(
            f"{where}: {scheme}:// needs a package that is not installed: {package} ({error}); "
            "file, gs, hdfs and s3 need none"
        ) from error
    except ValueError as error:
        raise LocationError(
            f"{where}: no file system is known for {scheme}:// ({error}); give a path, or a URI of "
            "file, gs, hdfs or s3"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
