"""Status and metadata replies, for both APIs."""

from __future__ import annotations

import inspect
import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from serving.model_server.model_manager import ModelManager
from serving.model_server.saved_model import SavedModel
from serving.model_server.status import CODES, invalid

# The option that prints default values has another name since protobuf 26.
_PRINT_DEFAULTS = next(
    name
    for name in ("always_print_fields_with_no_presence", "including_default_value_fields")
    if name in inspect.signature(json_format.MessageToDict).parameters
)


def asked_version(spec: model_pb2.ModelSpec) -> int | None:
    """The version that a ModelSpec names, if it names one."""
    return spec.version.value if spec.HasField("version") else None


def status_reply(
    manager: ModelManager, name: str, version: int | None
) -> get_model_status_pb2.GetModelStatusResponse:
    """States of a model's versions, newest first.

    Raises:
        ServingError: NOT_FOUND.
    """
    reply = get_model_status_pb2.GetModelStatusResponse()
    for status in manager.statuses(name, version):
        entry = reply.model_version_status.add(version=status.version)
        entry.state = get_model_status_pb2.ModelVersionStatus.State.Value(status.state)
        entry.status.error_code = CODES[status.error.code if status.error else "OK"]
        entry.status.error_message = status.error.message if status.error else ""
    return reply


def metadata_reply(
    manager: ModelManager, spec: model_pb2.ModelSpec
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """A version's signatures, packed as TensorFlow Serving packs them.

    Raises:
        ServingError: There is no such model, version or label.
    """
    signatures = get_model_metadata_pb2.SignatureDefMap()
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    with manager.use(spec.name, asked_version(spec), spec.version_label) as (version, model):
        assert isinstance(model, SavedModel)
        for name, signature in model.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
    reply = get_model_metadata_pb2.GetModelMetadataResponse()
    reply.model_spec.name = spec.name
    reply.model_spec.version.value = version
    reply.metadata["signature_def"].Pack(signatures)
    return reply


def status_json(reply: get_model_status_pb2.GetModelStatusResponse) -> bytes:
    """The REST body of a status reply."""
    return _dump(_to_dict(reply))


def metadata_json(reply: get_model_metadata_pb2.GetModelMetadataResponse) -> bytes:
    """The REST body of a metadata reply."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    reply.metadata["signature_def"].Unpack(signatures)
    return _dump(
        {
            "model_spec": _to_dict(reply.model_spec),
            "metadata": {"signature_def": _to_dict(signatures)},
        }
    )


def _to_dict(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, **{_PRINT_DEFAULTS: True}
    )


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=4, ensure_ascii=False).encode("utf-8", "surrogateescape")
