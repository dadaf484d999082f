"""``make demo DATA=folder KEEP=1``, as the README shows it."""

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tfx_pipeline.datasets import GeneratorSettings, PreparedDataset, prepare

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = GeneratorSettings(
    users=300, items=1000, min_events=20, max_events=100, requests=2000, max_history=40
)

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def own_dataset(tmp_path):
    """A prepared dataset under a name that nobody else's demo has."""
    dataset = prepare(None, tmp_path / f"make-demo-{os.getpid()}", generator=SETTINGS)
    work = ROOT / ".laser" / dataset.path.name
    yield dataset
    shutil.rmtree(work, ignore_errors=True)


def rank(address: str, dataset: PreparedDataset) -> dict:
    shown = pq.read_table(dataset.impressions_path).slice(0, 1).to_pylist()[0]
    candidates = [{"item_id": item, "position": place} for place, item in enumerate((3, 4, 5))]
    context = {"scenario": shown["scenario"]}
    body = {"user_id": shown["user_id"], "candidates": candidates, "context": context}
    request = urllib.request.Request(f"{address}/v1/rank", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.long
def test_a_kept_demo_of_own_data_goes_on_answering(own_dataset):
    command = ["make", "demo", f"DATA={own_dataset.path}", "KEEP=1"]
    demo = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    kept = re.search(r"the gateway goes on at (\S+): stop it with `kill (\d+)`", demo.stdout)
    assert kept, demo.stdout
    try:
        answer = rank(kept[1], own_dataset)
    finally:
        os.kill(int(kept[2]), signal.SIGTERM)
    assert sorted(each["item_id"] for each in answer["ranked"]) == [3, 4, 5]
    assert answer["history_length"] > 0
