"""The recall model through the whole pipeline: pushed beside the ranker, cached, refused."""

import json

import pytest
import tensorflow as tf

from tests.end_to_end.conftest import SETTINGS
from tfx_pipeline.config import load_config
from tfx_pipeline.datasets import prepare
from tfx_pipeline.errors import NotPushedError
from tfx_pipeline.load_store import load_store
from tfx_pipeline.runners.local import run_local

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


def test_a_recall_model_is_pushed_beside_the_ranker(tmp_path, small_config):
    dataset = prepare(None, tmp_path / "dataset", generator=SETTINGS)
    load_store(dataset.path, tmp_path / "store")
    run = tmp_path / "run"

    def config(**recall):
        overrides = {"recall": {"k": 50, "epochs": 1, **recall}}
        where = dataset.path, tmp_path / "store", run
        return load_config(str(small_config), *where, overrides)

    report = run_local(config())
    found = report["recall"]
    assert found["k"] == 50 and found["items"] == SETTINGS.items and 0 <= found["recall"] <= 1
    assert report["gates"]["recall@50"]["passed"]
    (version,) = (run / "serving" / "small_recall").iterdir()
    assert str(version) == found["pushed"]
    (ranker,) = (run / "serving" / "small").iterdir()
    assert str(ranker) == report["pushed"]
    signature = tf.saved_model.load(str(version)).signatures["serving_default"]
    assert signature.structured_outputs["item_id"].shape == [None, 50]

    # Another bound trains nothing again; what was pushed stays, and the reason is told.
    with pytest.raises(NotPushedError, match=r"ranker was pushed to .*recall@50 is 0\.\d+, below"):
        run_local(config(min_recall=1.0))
    kept = json.loads((run / "last_run.json").read_text())
    assert kept["seconds"]["RecallTrainer"] is None and kept["seconds"]["Trainer"] is None
    assert kept["recall"]["pushed"] is None and not kept["gates"]["recall@50"]["passed"]
    assert list((run / "serving" / "small_recall").iterdir()) == [version]

    # Another model is trained, and the ranker is not.
    again = run_local(config(width=16))
    assert again["seconds"]["RecallTrainer"] is not None and again["seconds"]["Trainer"] is None
    assert len(list((run / "serving" / "small_recall").iterdir())) == 2
    assert len(list((run / "serving" / "small").iterdir())) == 1
