"""Runs a compiled Kubeflow pipeline here: each container's command in a process, in their order.

``kfp.local`` runs single Python functions only. This does what Kubeflow does for the pods: it fills
``{{$}}`` with a task's parameters and artifacts, gives every output a place under the pipeline
root, and hands what a task wrote to those that take it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

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
