"""Datasets and pushed models named by URIs; with S3 where ``make test-s3`` starts a server."""

from __future__ import annotations

import os
import subprocess
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from components.file_systems import LocationError, download, fingerprint, open_file_system, upload
from components.seqvault_example_gen.errors import ImpressionsError
from components.seqvault_example_gen.impressions import open_parquet
from components.serving_check.server_process import free_port
from components.uris import scheme_of
from tfx_pipeline.cli import main
from tfx_pipeline.datasets import GeneratorSettings, prepare
from tfx_pipeline.datasets.fetch import dataset_folder

SETTINGS = GeneratorSettings(users=20, items=1000, min_events=5, max_events=20, requests=30)


@pytest.fixture(scope="module")
def s3():
    """An S3-compatible server with an empty bucket; its environment variables are set."""
    program = os.environ.get("LASER_MOTO_SERVER")
    if not program:
        pytest.skip("`make test-s3` starts the S3 server")
    port = free_port()
    server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.PIPE)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        try:
            _make_bucket(port)
            yield "s3://bucket"
        finally:
            server.kill()
            server.communicate()


def _make_bucket(port):
    deadline = time.monotonic() + 60
    while True:
        try:
            fs.S3FileSystem(
                endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True
            ).create_dir("bucket")
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.fixture(params=["file", "s3"])
def base(request, tmp_path):
    """A URI to write below, of each scheme that can be tried here."""
    if request.param == "file":
        return f"file://{tmp_path / 'remote'}"
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return prepare(None, tmp_path_factory.mktemp("dataset") / "data", generator=SETTINGS)


def test_a_folder_goes_up_and_comes_down_again(base, tmp_path):
    folder = tmp_path / "model"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "data").write_bytes(os.urandom(9 << 20))
    upload(str(folder), f"{base}/1700000000")
    back = tmp_path / "back"
    (back / "variables").mkdir(parents=True)
    download(f"{base}/1700000000", ["saved_model.pb", "variables/data"], back)
    for name in ("saved_model.pb", "variables/data"):
        assert (back / name).read_bytes() == (folder / name).read_bytes()
    before = fingerprint(f"{base}/1700000000", ["saved_model.pb"])
    assert fingerprint(f"{base}/1700000000", ["saved_model.pb"]) == before
    (folder / "saved_model.pb").write_bytes(b"another")
    upload(str(folder), f"{base}/1700000000")
    assert fingerprint(f"{base}/1700000000", ["saved_model.pb"]) != before
    with pytest.raises(LocationError, match="nothing cannot be read"):
        download(base, ["nothing"], back)


def test_a_dataset_is_copied_once_and_again_when_it_changed(base, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    upload(str(dataset.path), f"{base}/data")
    folder = dataset_folder(f"{base}/data")
    for name in ("features.yaml", "events.parquet", "impressions.parquet"):
        assert (folder / name).read_bytes() == (dataset.path / name).read_bytes()
    (folder / "events.parquet").write_bytes(b"mark")
    assert dataset_folder(f"{base}/data/") == folder
    assert (folder / "events.parquet").read_bytes() == b"mark"
    other = prepare(None, tmp_path / "other", generator=GeneratorSettings(
        users=25, items=1000, min_events=5, max_events=20, requests=30
    ))  # fmt: skip
    upload(str(other.path), f"{base}/data")
    assert dataset_folder(f"{base}/data") == folder
    assert (folder / "events.parquet").read_bytes() == other.events_path.read_bytes()
    assert [path for path in folder.parent.iterdir() if path != folder] == []
    with pytest.raises(LocationError, match=r"holds no dataset.json: give the URI of a prepared"):
        dataset_folder(f"{base}/none")


def test_the_command_line_takes_a_datasets_uri(base, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    upload(str(dataset.path), f"{base}/data")
    assert main(["load", "--data", f"{base}/data", "--store", str(tmp_path / "vault")]) == 0
    assert f"{dataset.counts['items']:,} items" in capsys.readouterr().out


def test_pods_read_impressions_by_their_uri(base, dataset):
    upload(str(dataset.path), f"{base}/data")
    table = open_parquet(f"{base}/data/impressions.parquet").read()
    assert table.equals(pq.read_table(dataset.impressions_path))
    with pytest.raises(ImpressionsError, match="cannot be read as Parquet"):
        open_parquet(f"{base}/none/impressions.parquet")


@pytest.mark.parametrize("scheme", ["s3", "gs", "gcs", "hdfs", "abfs", "http", "minio", "memory"])
@pytest.mark.parametrize(
    ("command", "option"),
    [("run", "--work"), ("load", "--store"), ("status", "--work"), ("prepare", "--data"),
     ("prepare", "--source"), ("compile", "--output"), ("run", "--store"), ("check", "--work")],
)  # fmt: skip
def test_a_uri_never_becomes_a_local_path(scheme, command, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {"--data": "d", "--store": "s", "--work": "w"}
    if command == "compile":
        given |= {"--target": "kubeflow", "--output": "o.yaml"}
    known = {"status": ["--work"], "load": ["--data", "--store"], "prepare": ["--data"]}
    given = {name: given[name] for name in known.get(command, given)}
    given[option] = f"{scheme}://bucket/folder"
    with pytest.raises(SystemExit) as stopped:
        main([command, *(part for pair in given.items() for part in pair)])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"argument {option}: {scheme}://bucket/folder is a URI" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("abfs://container/data", "needs a package that is not installed: adlfs"),
        ("oss://bucket/data", "needs a package that is not installed: ossfs"),
        ("foo://bucket/data", "needs a package that is not installed: fsspec and its plug-in"),
        ("s3://", "names no bucket or folder: give s3://BUCKET/FOLDER"),
        ("gs:///", "names no bucket or folder: give gs://BUCKET/FOLDER"),
    ],
)
def test_what_is_missing_for_a_uri_is_named(uri, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)  # as if it were not installed
    assert main(["load", "--data", uri, "--store", str(tmp_path / "vault")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"laser-pipeline: error: {uri}") and expected in line
    assert list(tmp_path.iterdir()) == []


def test_paths_are_no_uris(tmp_path):
    assert scheme_of("/data/s3:/bucket") is None and scheme_of("a:b") is None
    assert scheme_of("S3://bucket") == "s3"
    found, path = open_file_system(str(tmp_path))
    assert isinstance(found, fs.LocalFileSystem) and path == str(tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    assert open_parquet(str(tmp_path / "a.parquet")).metadata.num_rows == 1
