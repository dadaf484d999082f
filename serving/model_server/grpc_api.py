"""TensorFlow Serving's gRPC services: PredictionService and ModelService."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.model_server.messages import asked_version, metadata_reply, status_reply
from serving.model_server.model_manager import ModelManager
from serving.model_server.predict import (
    DEFAULT_SIGNATURE,
    find_signature,
    parse_inputs,
    run_signature,
)
from serving.model_server.saved_model import SavedModel
from serving.model_server.status import ServingError, invalid
from serving.model_server.tensors import to_proto

Reply = TypeVar("Reply")
MAX_MESSAGE_BYTES = 2**31 - 1
_FOREVER_SECONDS = 1e9


def _with_status(
    method: Callable[[Any, Any, grpc.ServicerContext], Reply],
) -> Callable[[Any, Any, grpc.ServicerContext], Reply]:
    """Turn a ``ServingError`` into the call's status."""

    @wraps(method)
    def call(service: Any, request: Any, context: grpc.ServicerContext) -> Reply:
        try:
            return method(service, request, context)
        except ServingError as error:
            context.abort(grpc.StatusCode[error.code], error.grpc_message)
            raise

    return call


def _time_left(context: grpc.ServicerContext) -> float | None:
    """Seconds to the call's deadline; gRPC reports a call without one as centuries away."""
    seconds = context.time_remaining()
    return None if seconds is None or seconds > _FOREVER_SECONDS else seconds


def _check_spec(request: Any) -> model_pb2.ModelSpec:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the other calls answer UNIMPLEMENTED."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    @_with_status
    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        """Run a signature on the request's tensors."""
        spec = _check_spec(request)
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        name = spec.signature_name or DEFAULT_SIGNATURE
        with self._manager.use(spec.name, asked_version(spec), spec.version_label) as (
            version,
            model,
        ):
            assert isinstance(model, SavedModel)
            signature = find_signature(model, name)
            inputs = parse_inputs(request.inputs, signature)
            outputs = run_signature(
                model, signature, inputs, request.output_filter, _time_left(context)
            )
        reply = predict_pb2.PredictResponse()
        reply.model_spec.name = spec.name
        reply.model_spec.signature_name = name
        reply.model_spec.version.value = version
        for alias, array in outputs.items():
            reply.outputs[alias].CopyFrom(to_proto(array))
        return reply

    @_with_status
    def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """A version's signatures."""
        spec = _check_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise invalid(f"Metadata field {name} is not supported")
        return metadata_reply(self._manager, spec)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus; a reload of the configuration answers UNIMPLEMENTED."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    @_with_status
    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """States of a model's versions."""
        spec = _check_spec(request)
        return status_reply(self._manager, spec.name, asked_version(spec))


def add_services(server: grpc.Server, manager: ModelManager) -> None:
    """Register both services."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(manager), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(manager), server)
