"""Every component of a compiled Kubeflow pipeline, by the command that its pod would run."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.compiled_pipeline import CompiledPipeline
from tfx_pipeline.config import load_config
from tfx_pipeline.datasets import GeneratorSettings, prepare
from tfx_pipeline.load_store import load_store
from tfx_pipeline.runners.kubeflow import compile_kubeflow

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
CONFIG = """
name: compiled
min_auc: 0.0
rows_per_file: 400
checked_requests: 1
model:
  {dim: 8, mixer_dim: 8, num_tokens: 8, mixer_blocks: 1, encoder: {num_recent_segments: 2}}
training: {batch_size: 16, epochs: 1}
"""


def test_every_component_runs_and_a_model_is_pushed(tmp_path):
    sizes = GeneratorSettings(users=30, items=1000, min_events=5, max_events=30, requests=60)
    prepare(None, tmp_path / "data", generator=sizes)
    load_store(tmp_path / "data", tmp_path / "store")
    (tmp_path / "config.yaml").write_text(CONFIG)
    config = load_config(
        str(tmp_path / "config.yaml"), tmp_path / "data", tmp_path / "store", tmp_path / "work", {}
    )
    file = compile_kubeflow(config, tmp_path / "pipeline.yaml")
    # The pods find the store elsewhere than whoever compiled: the run's parameter says so.
    (tmp_path / "store").rename(tmp_path / "store-of-the-pods")
    (tmp_path / "root").mkdir()
    pipeline = CompiledPipeline(
        file, tmp_path / "root", {"store": str(tmp_path / "store-of-the-pods")}
    )
    order = pipeline.run()
    assert set(order) == set(pipeline.tasks) and len(order) == 10
    assert order.index("AnomalyGate") < order.index("Trainer") < order.index("Pusher")
    join = pipeline.output("SeqVaultExampleGen", "examples")
    assert join["metadata"]["count_impressions_train"] == 420
    assert join["metadata"]["count_impressions_eval"] == 110
    assert json.loads(join["metadata"]["split_names"]) == ["train", "eval"]
    for task in ("Evaluator", "ServingCheck"):
        assert pipeline.output(task, "blessing")["metadata"]["blessed"] == 1
    pushed = pipeline.output("Pusher", "pushed_model")["metadata"]
    assert pushed["pushed"] == 1
    assert (Path(pushed["pushed_destination"]) / "saved_model.pb").is_file()
    trained = Path(pipeline.output("Trainer", "model")["uri"])
    assert (trained / "Format-Serving" / "saved_model.pb").is_file()
