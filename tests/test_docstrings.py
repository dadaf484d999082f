"""Examples in docstrings are executed; those of ``laser_keras`` by its own tests."""

import doctest
import importlib
import pkgutil

import pytest

ROOMS = ("seqvault", "laser_features", "components", "tfx_pipeline", "serving")
KERAS_2 = "tfx_pipeline.recall.keras2."


def modules_of(room: str) -> list[str]:
    package = importlib.import_module(room)
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{room}.")]
    return [
        room,
        *(
            name
            for name in names
            # Keras 2 and Keras 3 do not go together in one process.
            if not name.endswith(("_pb2", "_pb2_grpc")) and not name.startswith(KERAS_2)
        ),
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_examples_run(room: str) -> None:
    attempted = 0
    for name in modules_of(room):
        results = doctest.testmod(
            importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
        )
        assert results.failed == 0, name
        attempted += results.attempted
    assert attempted > 0
