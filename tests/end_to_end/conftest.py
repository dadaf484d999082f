"""One small demo, run once: the tests look at what it left."""

import os
from pathlib import Path

import pytest

from tfx_pipeline.config import load_config
from tfx_pipeline.datasets import GeneratorSettings
from tfx_pipeline.demo.demo import run_demo

SETTINGS = GeneratorSettings(
    users=80, items=1000, min_events=20, max_events=300, requests=500, max_history=60
)
CONFIG = """
name: small
slices: [scenario]
min_auc: 0.0
rows_per_file: 1500
checked_requests: 8
model: {dim: 16, mixer_dim: 16, num_tokens: 8, encoder: {num_recent_segments: 2}}
training: {batch_size: 64}
"""


class Demo:
    """Where the demo's parts are, and what it returned."""

    def __init__(self, work: Path, result: dict) -> None:
        self.work = work
        self.result = result
        self.dataset = work / "dataset"
        self.store = work / "store"
        self.run_folder = work / "run"

    def config(self, **overrides):
        """The config that the demo ran with, maybe changed."""
        path = str(self.work / "small.yaml")
        return load_config(path, self.dataset, self.store, self.run_folder, overrides)


@pytest.fixture(scope="session")
def small_config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def demo(tmp_path_factory, small_config) -> Demo:
    work = tmp_path_factory.mktemp("demo")
    (work / "small.yaml").write_text(CONFIG)
    return Demo(work, run_demo(work, config=str(work / "small.yaml"), generator=SETTINGS))


@pytest.fixture(scope="session")
def kuairand() -> Path:
    """The real log, where this machine has it."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LASER_SHARED_DATA", default)) / "kuairand_pure"
    if not folder.is_dir():
        pytest.skip(f"no real log at {folder}; set LASER_SHARED_DATA to the folder that has it")
    return folder
