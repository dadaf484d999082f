"""TensorFlow Serving's gRPC services as functions from bytes to bytes, without sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_pb2,
    predict_pb2,
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
from serving.model_server.wire_cost import predict_request_cost
from serving.runtime.call import Call
from serving.runtime.memory_budget import Allowance

Request = TypeVar("Request", bound=Message)
PREDICTION = "/tensorflow.serving.PredictionService/"
MODEL = "/tensorflow.serving.ModelService/"
# Messages without tensors: what they take once parsed, by their bytes.
_PARSED = 40
_TASK_METHODS = ("tensorflow/serving/classify", "tensorflow/serving/regress")


class GrpcApi:
    """Answers gRPC calls; safe to call from many threads at once.

    Args:
        manager: Holds the models.
    """

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        self.predictions: dict[str, Callable[[bytes, Call, Allowance], bytes]] = {
            f"{PREDICTION}Predict": self.predict,
            f"{PREDICTION}MultiInference": self.multi_inference,
        }
        self.looks: dict[str, Callable[[bytes, Call, Allowance], bytes]] = {
            f"{PREDICTION}GetModelMetadata": self.get_model_metadata,
            f"{MODEL}GetModelStatus": self.get_model_status,
        }

    def predict(self, message: bytes, call: Call, allowance: Allowance) -> bytes:
        """Run a signature on the request's tensors.

        Raises:
            ServingError: With the call's status.
            RuntimeRefusal: No time or no memory is left for it.
        """
        try:
            cost = predict_request_cost(message, allowance.limit)
        except ValueError as error:
            raise _unparsable(predict_pb2.PredictRequest, error) from error
        allowance.take(cost, "the parsed message")
        request = _parse(predict_pb2.PredictRequest, message)
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
            inputs = parse_inputs(request.inputs, signature, allowance.take)
            call.check("the model ran")
            outputs = run_signature(model, signature, inputs, request.output_filter, call.left)
        reply = predict_pb2.PredictResponse()
        reply.model_spec.name = spec.name
        reply.model_spec.signature_name = name
        reply.model_spec.version.value = version
        for alias, array in outputs.items():
            reply.outputs[alias].CopyFrom(to_proto(array))
        return reply.SerializeToString()

    def multi_inference(self, message: bytes, call: Call, allowance: Allowance) -> bytes:
        """Refuse, with the status that TensorFlow Serving gives where it refuses, too.

        Raises:
            ServingError: Always.
        """
        allowance.take(_PARSED * len(message), "the parsed message")
        request = _parse(inference_pb2.MultiInferenceRequest, message)
        names = [task.model_spec.name for task in request.tasks]
        if not names or not names[0]:
            raise invalid("ModelSpec has no name specified.")
        spec = request.tasks[0].model_spec
        with self._manager.use(spec.name, asked_version(spec), spec.version_label) as (_, model):
            assert isinstance(model, SavedModel)
            if not all(names):
                raise invalid("Found ModelSpec with an empty model name.")
            if set(names) != {names[0]}:
                raise invalid(
                    "All ModelSpecs in a MultiInferenceRequest must access the same model name."
                )
            signatures = [task.model_spec.signature_name or DEFAULT_SIGNATURE
                          for task in request.tasks]  # fmt: skip
            for number, name in enumerate(signatures):
                if name in signatures[:number]:
                    raise invalid(f"Duplicate evaluation of signature: {name}")
                if name not in model.signatures:
                    raise invalid(f"No signature was found with the name: {name}")
            for task in request.tasks:
                if task.method_name not in _TASK_METHODS:
                    raise ServingError(
                        "UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}"
                    )
        raise ServingError("UNIMPLEMENTED", "MultiInference is not served here; call Predict")

    def get_model_metadata(self, message: bytes, call: Call, allowance: Allowance) -> bytes:
        """A version's signatures.

        Raises:
            ServingError: With the call's status.
        """
        allowance.take(_PARSED * len(message), "the parsed message")
        request = _parse(get_model_metadata_pb2.GetModelMetadataRequest, message)
        spec = _check_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise invalid(f"Metadata field {name} is not supported")
        return metadata_reply(self._manager, spec).SerializeToString()

    def get_model_status(self, message: bytes, call: Call, allowance: Allowance) -> bytes:
        """States of a model's versions.

        Raises:
            ServingError: With the call's status.
        """
        allowance.take(_PARSED * len(message), "the parsed message")
        request = _parse(get_model_status_pb2.GetModelStatusRequest, message)
        spec = _check_spec(request)
        return status_reply(self._manager, spec.name, asked_version(spec)).SerializeToString()


def _parse(kind: type[Request], message: bytes) -> Request:
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise _unparsable(kind, error) from error


def _unparsable(kind: type[Message], error: Exception) -> ServingError:
    return invalid(f"the bytes are not a tensorflow.serving.{kind.__name__}: {error}")


def _check_spec(request: Message) -> model_pb2.ModelSpec:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec  # type: ignore[attr-defined]
