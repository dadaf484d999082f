"""Calls the model server: TensorFlow Serving, or the embedded one."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
import grpc.experimental
from numpy.typing import NDArray

from serving.gateway.errors import GatewayError
from serving.gateway.predict_messages import (
    AVAILABLE,
    GetModelStatusRequest,
    GetModelStatusResponse,
    PredictRequest,
    PredictResponse,
    add_tensor,
    read_tensor,
)
from serving.runtime.call import Call
from serving.runtime.errors import AbandonedError

_LONGEST_SECONDS = 1e6
_MAX_MESSAGE_BYTES = 256 * 2**20
_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_NO_TIME_LEFT = "the deadline passed before the model answered"


class ModelClient:
    """One channel to the model server, shared by all threads.

    Args:
        address: ``host:port`` of its gRPC API.
        model_name: Model to ask for.
    """

    def __init__(self, address: str, model_name: str) -> None:
        self._address = address
        self._model_name = model_name
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                # Without this each call that can be cancelled takes a thread of its own.
                (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
                # A model server that comes back is found within a second.
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        # Said to be a stream to this library, see above; on the wire one message is one message.
        self._predict = self._channel.unary_stream(
            _PREDICT, PredictRequest.SerializeToString, PredictResponse.FromString
        )
        self._status = self._channel.unary_unary(
            _STATUS, GetModelStatusRequest.SerializeToString, GetModelStatusResponse.FromString
        )

    def predict(
        self, inputs: Mapping[str, NDArray], output: str, call: Call
    ) -> tuple[int, NDArray]:
        """Run the model.

        Args:
            inputs: Arrays by the signature's input names.
            output: Name of the output to return.
            call: The model server is given what is left of its time, and told when its caller
                hangs up.

        Returns:
            The version that ran, and the output.

        Raises:
            GatewayError: 502, 503 or 504.
            RuntimeRefusal: The caller has gone away.
        """
        call.check("the model was asked")
        request = PredictRequest()
        request.model_spec.name = self._model_name
        request.output_filter.append(output)
        for name, array in inputs.items():
            add_tensor(request, name, array)
        pending = self._predict(request, timeout=min(call.left, _LONGEST_SECONDS))
        try:
            with call.stopped_by(pending.cancel):
                reply = next(pending, None)
                next(pending, None)  # its status, which may be an error
        except grpc.RpcError as error:
            if call.abandoned:
                raise AbandonedError("the caller hung up before the model answered") from error
            raise self._explain(error) from error
        if reply is None:
            raise GatewayError(502, f"model {self._model_name!r} answered without a message")
        try:
            if output not in reply.outputs:
                raise ValueError(f"it has {sorted(reply.outputs)}")
            return reply.model_spec.version.value, read_tensor(reply.outputs[output])
        except ValueError as error:
            raise GatewayError(
                502, f"model {self._model_name!r} answered without a usable {output!r}: {error}"
            ) from error

    def available_versions(self, timeout_seconds: float) -> list[int]:
        """Versions that the model server can run now, newest first.

        Raises:
            GatewayError: 503: the server or the model is not there.
        """
        request = GetModelStatusRequest()
        request.model_spec.name = self._model_name
        try:
            reply = self._status(request, timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise self._explain(error) from error
        return [
            status.version for status in reply.model_version_status if status.state == AVAILABLE
        ]

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _explain(self, error: grpc.RpcError) -> GatewayError:
        code, details = error.code(), error.details()
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return GatewayError(504, _NO_TIME_LEFT)
        if code == grpc.StatusCode.NOT_FOUND:
            return GatewayError(
                503,
                f"the model server at {self._address} serves no model {self._model_name!r} "
                f"({details}); push one, or start the gateway with another --model_name",
            )
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
            return GatewayError(
                502,
                f"model {self._model_name!r} does not take what the feature spec makes: {details}",
            )
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return GatewayError(413, f"the request is too large for the model server: {details}")
        return GatewayError(
            503, f"the model server at {self._address} does not answer ({code.name}: {details})"
        )
