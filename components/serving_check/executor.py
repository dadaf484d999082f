"""The executor of ServingCheck."""

from __future__ import annotations

import os
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import tensorflow as tf
from absl import logging
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import io_utils, json_utils, path_utils

from components.serving_check.answers import check_answers
from components.serving_check.server_process import ServerProcess, free_port
from components.serving_check.warm_up import WARMUP_FILE, warm_up_records, write_warm_up

EMBEDDED_SERVER = (sys.executable, "-m", "serving.cli", "model-server")
_PROBLEMS_SHOWN = 5
# Nearly all of a start is importing TensorFlow, which takes minutes where others want the
# machine. This only bounds a server that hangs: one that ends is noticed at
# once, and the local runner says every ten seconds that the check goes on.
_START_SECONDS = 600


class ServingCheckExecutor(base_executor.BaseExecutor):
    """Starts a model server, sends it requests of the eval split, and blesses or does not.

    A model that answers wrongly is not blessed, with the reason in the artifact's property
    ``reason``; a server that does not start ends the run, so that nothing is cached.
    """

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Check one model.

        Raises:
            ServerError: The model server could not be started or did not load the model.
            ValueError: There are no requests to send.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        model = artifact_utils.get_single_instance(input_dict["model"])
        path = path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))
        examples = _first_examples(input_dict["examples"], exec_properties["requests"])
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        name = exec_properties["model_name"]
        command = json_utils.loads(exec_properties["command"]) or list(EMBEDDED_SERVER)
        # The Pusher puts this file beside the model.
        warm_up = os.path.join(blessing.uri, WARMUP_FILE)
        problems = check_model(path, examples, name, command, warm_up)
        blessed = not problems
        file = "INFRA_BLESSED" if blessed else "INFRA_NOT_BLESSED"
        reason = "; ".join(problems[:_PROBLEMS_SHOWN])
        io_utils.write_string_file(os.path.join(blessing.uri, file), reason)
        blessing.set_int_custom_property("blessed", int(blessed))
        blessing.set_int_custom_property("requests", len(examples))
        if not blessed:
            blessing.set_string_custom_property("reason", reason)
            logging.error("The served model's answers are wrong: %s", reason)


def check_model(
    path: str, examples: list[bytes], model_name: str, command: list[str], warm_up: str
) -> list[str]:
    """Serve a SavedModel as version 1 and compare answers; returns what was wrong.

    It is served with the warm-up requests that are written here: a server that could not run them
    would not serve the model.

    Args:
        path: Folder of the SavedModel.
        examples: Serialized Examples to send.
        model_name: Name to serve it under.
        command: Starts a server that takes TensorFlow Serving's flags.
        warm_up: Gets the warm-up requests.
    """
    model = tf.saved_model.load(path)
    write_warm_up(warm_up, warm_up_records(model.signatures, examples, model_name))
    with tempfile.TemporaryDirectory(prefix="serving_check_") as folder:
        base = Path(folder) / model_name
        base.mkdir()
        _link_with_warm_up(base / "1", Path(path).resolve(), Path(warm_up).resolve())
        rest_port, grpc_port = free_port(), free_port()
        flags = [
            f"--model_name={model_name}",
            f"--model_base_path={base}",
            f"--rest_api_port={rest_port}",
            f"--port={grpc_port}",
        ]
        url = f"http://127.0.0.1:{rest_port}/v1/models/{model_name}"
        with ServerProcess(
            [*command, *flags], ready_url=url, start_seconds=_START_SECONDS, ends_with_us=True
        ):
            return check_answers(model, examples, f"{url}:predict")


def _link_with_warm_up(version: Path, model: Path, warm_up: Path) -> None:
    """A version directory of links: all that the model's folder has, and the warm-up requests."""
    extra = version / Path(WARMUP_FILE).parent
    extra.mkdir(parents=True)
    for entry in model.iterdir():
        if entry.name != extra.name:
            (version / entry.name).symlink_to(entry)
    own = model / extra.name
    for entry in own.iterdir() if own.is_dir() else ():
        if entry.name != warm_up.name:
            (extra / entry.name).symlink_to(entry)
    (extra / warm_up.name).symlink_to(warm_up)


def _first_examples(artifacts: list[types.Artifact], count: int) -> list[bytes]:
    folder = artifact_utils.get_split_uri(artifacts, "eval")
    files = sorted(tf.io.gfile.glob(os.path.join(folder, "*")))
    records = tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator()
    examples = list(islice(records, count))
    if not examples:
        raise ValueError(f"no requests to check the model with: {folder} holds no Examples")
    return examples
