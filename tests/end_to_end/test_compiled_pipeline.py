"""Every component of a compiled Kubeflow pipeline, by the command that its pod would run.

``kfp.local`` runs single Python functions only. ``CompiledPipeline`` does what Kubeflow does: it
fills ``{{$}}`` with a task's parameters and artifacts, gives every output a place under the
pipeline root, and hands what a task wrote to those that take it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

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
PLACEHOLDER = "{{$}}"


class CompiledPipeline:
    """A pipeline file, its root, and what its tasks have written.

    Args:
        file: What ``compile_kubeflow`` wrote.
        root: The pipeline root.
        parameters: Of the run; others keep their defaults.
    """

    def __init__(self, file: Path, root: Path, parameters: dict[str, Any] | None = None) -> None:
        self.spec = next(iter(yaml.safe_load_all(file.read_text())))
        self.root = root
        defaults = self.spec["root"].get("inputDefinitions", {}).get("parameters", {})
        self.parameters = {name: each["defaultValue"] for name, each in defaults.items()}
        unknown = set(parameters or {}) - set(defaults)
        assert not unknown, f"the pipeline has no parameters {unknown}"
        self.parameters.update(parameters or {})
        self.written: dict[str, dict[str, Any]] = {}

    @property
    def tasks(self) -> dict[str, Any]:
        """The pipeline's tasks by name."""
        return dict(self.spec["root"]["dag"]["tasks"])

    def run(self) -> list[str]:
        """Run every task; returns their names in the order in which they ran."""
        while waiting := [name for name in self.tasks if name not in self.written]:
            ready = [
                name
                for name in waiting
                if set(self.tasks[name].get("dependentTasks", ())) <= set(self.written)
            ]
            assert ready, f"tasks that wait for one another: {waiting}"
            self._run(ready[0])
        return list(self.written)

    def output(self, task: str, key: str) -> dict[str, Any]:
        """The only artifact of a task's output: ``uri``, ``metadata``, ..."""
        (artifact,) = self.written[task][key]["artifacts"]
        return dict(artifact)

    def _run(self, name: str) -> None:
        component = self.spec["components"][self.tasks[name]["componentRef"]["name"]]
        container = self.spec["deploymentSpec"]["executors"][component["executorLabel"]][
            "container"
        ]
        file = self.root / name / "executor_output.json"
        outputs = {
            key: {
                "artifacts": [
                    {"name": f"{name}-{key}", "uri": str(self.root / name / key), "type": kind}
                ]
            }
            for key, kind in _types(component).items()
        }
        given = {
            "inputs": self._inputs(self.tasks[name].get("inputs", {})),
            "outputs": {"artifacts": outputs, "outputFile": str(file)},
        }
        command = [
            sys.executable if word == "python" else word.replace(PLACEHOLDER, json.dumps(given))
            for word in (*container["command"], *container["args"])
        ]
        variables = {each["name"]: each["value"] for each in container.get("env", ())}
        done = subprocess.run(
            command,
            env={**os.environ, **variables},
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stdout[-4000:]}"
        found = json.loads(file.read_text()).get("artifacts", {})
        for key, each in outputs.items():
            for ours, theirs in zip(
                each["artifacts"], found.get(key, {}).get("artifacts", ()), strict=True
            ):
                ours["metadata"] = theirs.get("metadata", {})
        self.written[name] = outputs

    def _inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        artifacts = {}
        for key, each in inputs.get("artifacts", {}).items():
            source = each["taskOutputArtifact"]
            artifacts[key] = self.written[source["producerTask"]][source["outputArtifactKey"]]
        parameters = {
            key: self.parameters[each["componentInputParameter"]]
            if "componentInputParameter" in each
            else each["runtimeValue"]["constant"]
            for key, each in inputs.get("parameters", {}).items()
        }
        return {"artifacts": artifacts, "parameterValues": parameters}


def _types(component: dict[str, Any]) -> dict[str, Any]:
    artifacts = component.get("outputDefinitions", {}).get("artifacts", {})
    return {key: each["artifactType"] for key, each in artifacts.items()}


def test_every_component_runs_and_a_model_is_pushed(tmp_path):
    sizes = GeneratorSettings(users=30, items=1000, min_events=5, max_events=30, requests=60)
    prepare(None, tmp_path / "data", generator=sizes)
    load_store(tmp_path / "data", tmp_path / "store")
    (tmp_path / "config.yaml").write_text(CONFIG)
    config = load_config(
        str(tmp_path / "config.yaml"), tmp_path / "data", tmp_path / "store", tmp_path / "work", {}
    )
    file = compile_kubeflow(config, tmp_path / "pipeline.yaml")
    assert config.load_spec().content_fields  # the Trainer must find them without the dataset
    # The pods find dataset and store elsewhere than whoever compiled: the run's parameters say so.
    parameters = {"dataset": "data", "store": "store"}
    for parameter, name in parameters.items():
        parameters[parameter] = str((tmp_path / name).rename(tmp_path / f"{name}-of-the-pods"))
    (tmp_path / "root").mkdir()
    pipeline = CompiledPipeline(file, tmp_path / "root", parameters)
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
