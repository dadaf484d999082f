"""A Pusher that publishes versions atomically."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from absl import logging
from google.protobuf import json_format
from tfx import types
from tfx.components.pusher.component import Pusher
from tfx.components.pusher.executor import Executor
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.dsl.io import fileio
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import proto_utils

from components.file_systems import upload
from components.serving_check.warm_up import WARMUP_FILE
from components.uris import scheme_of


class AtomicPusherExecutor(Executor):
    """Pushes into a temporary folder beside the served one, then renames it.

    A model server looks for versions every second and loads what it finds: a version that is
    copied into its folder file by file, or half a version that an interrupted run left there,
    would be loaded as it is, fail, and never be tried again.

    Object stores have no rename: a version that goes to a URI is uploaded with its
    ``saved_model.pb`` last.

    With the blessing of ServingCheck come requests that a model server runs before it puts the
    version to use; they are pushed with the model.
    """

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Push the model if it is blessed."""
        key = standard_component_specs.PUSH_DESTINATION_KEY
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties[key], destination)
        served = destination.filesystem.base_directory
        is_uri = scheme_of(served) is not None
        staging = tempfile.mkdtemp(prefix="pushed_") if is_uri else f"{served.rstrip('/')}.partial"
        destination.filesystem.base_directory = staging
        staged = {**exec_properties, key: json_format.MessageToJson(destination)}
        try:
            super().Do(input_dict, output_dict, staged)
            pushed = artifact_utils.get_single_instance(
                output_dict[standard_component_specs.PUSHED_MODEL_KEY]
            )
            if pushed.get_int_custom_property("pushed"):
                version = pushed.get_string_custom_property("pushed_version")
                final = os.path.join(served, version)
                _add_warm_up(os.path.join(staging, version), input_dict)
                if is_uri:
                    upload(os.path.join(staging, version), final)
                else:
                    fileio.makedirs(served)
                    fileio.rename(os.path.join(staging, version), final)
                pushed.set_string_custom_property("pushed_destination", final)
        finally:
            if fileio.exists(staging):
                fileio.rmtree(staging)


def _add_warm_up(version: str, input_dict: dict[str, list[types.Artifact]]) -> None:
    """Put the checked requests where a model server looks for them."""
    for blessing in input_dict.get(standard_component_specs.INFRA_BLESSING_KEY, ()):
        requests = os.path.join(blessing.uri, WARMUP_FILE)
        if not fileio.exists(requests):
            logging.warning("%s is not there: the first calls of this version are slow", requests)
            continue
        pushed = os.path.join(version, WARMUP_FILE)
        fileio.makedirs(os.path.dirname(pushed))
        fileio.copy(requests, pushed, overwrite=True)


class AtomicPusher(Pusher):
    """TFX's Pusher with ``AtomicPusherExecutor``."""

    EXECUTOR_SPEC = ExecutorClassSpec(AtomicPusherExecutor)
