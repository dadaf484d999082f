"""Tiny SavedModels, and servers of them on loopback."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serving_helpers import SPEC, make_store, save_basic, save_ranker

from laser_features import FeatureSpec
from serving.model_server.limits import Limits
from serving.model_server.model_server import ModelServer, ServerOptions
from serving.model_server.versions import ModelConfig


@pytest.fixture(scope="session")
def spec() -> FeatureSpec:
    return FeatureSpec.from_dict(SPEC)


@pytest.fixture(scope="session")
def basic_model(tmp_path_factory) -> Path:
    """A base path with one version of ``Basic``."""
    base = tmp_path_factory.mktemp("models") / "basic"
    base.mkdir()
    save_basic(base / "00000123")
    return base


@pytest.fixture(scope="session")
def ranker_model(tmp_path_factory, spec) -> Path:
    """A base path with one version of ``TinyRanker``."""
    base = tmp_path_factory.mktemp("models") / "ranker"
    base.mkdir()
    save_ranker(base / "7", spec)
    return base


@pytest.fixture(scope="session")
def server(basic_model) -> Iterator[ModelServer]:
    """A model server of ``Basic`` under the names ``m`` and ``a b/c`` in this process."""
    server = ModelServer(
        [ModelConfig("m", basic_model), ModelConfig("a b/c", basic_model)],
        ServerOptions(
            grpc_port=0,
            rest_port=0,
            poll_seconds=0.05,
            rest_timeout_seconds=1.0,
            limits=Limits(threads=4),
            intra_op_threads=1,
            inter_op_threads=2,
        ),
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def store_path(tmp_path_factory, spec) -> Path:
    """A store with items 0 to 19, without events."""
    return make_store(tmp_path_factory.mktemp("store") / "vault", spec)
