"""Warm-up requests of a model, made of requests of the eval split.

A model server runs them before it puts a version to use. Without them the first call that asks for
certain outputs waits until TensorFlow has prepared the graph for them, which takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tfx.dsl.io import fileio

from components.serving_check.answers import DEFAULT, EXAMPLES, model_inputs

WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
# Beside the numbers of candidates that the requests have themselves.
CANDIDATES = (1, 10, 100, 500)
_REQUESTS = 20


def warm_up_records(
    signatures: object, examples: Iterable[bytes], model_name: str
) -> Iterator[prediction_log_pb2.PredictionLog]:
    """Predict calls as the gateway sends them, and as others may.

    Args:
        signatures: Of the loaded SavedModel, by name.
        examples: Serialized Examples, one request each; the first twenty are taken.
        model_name: Name that the model is served under.

    Yields:
        Each request with its own candidates; the first one, too, with its candidates repeated to
        each number in ``CANDIDATES``; asked for all outputs and, as the gateway does, for each by
        its name; and the serialized Examples in a batch.
    """
    default = signatures[DEFAULT]  # type: ignore[index]
    outputs = list(default.structured_outputs)
    serialized = list(examples)[:_REQUESTS]
    requests = [model_inputs(tf.train.Example.FromString(each), default) for each in serialized]
    widths = default.structured_input_signature[1]
    repeated = [
        {
            name: _repeat(array, count) if _is_candidate(widths[name]) else array
            for name, array in requests[0].items()
        }
        for count in CANDIDATES
    ]
    for inputs in [*repeated, *requests]:
        yield _predict(model_name, DEFAULT, inputs, [])
        for output in outputs:
            yield _predict(model_name, DEFAULT, inputs, [output])
    if EXAMPLES in signatures:  # type: ignore[operator]
        (name,) = signatures[EXAMPLES].structured_input_signature[1]  # type: ignore[index]
        for count in (1, len(serialized)):
            batch = np.array(serialized[:count], object)
            yield _predict(model_name, EXAMPLES, {name: batch}, [])


def write_warm_up(path: str, logs: Iterable[prediction_log_pb2.PredictionLog]) -> int:
    """Write the file that a model server looks for; returns the number of records."""
    fileio.makedirs(os.path.dirname(path))
    written = 0
    with tf.io.TFRecordWriter(path) as writer:
        for log in logs:
            writer.write(log.SerializeToString())
            written += 1
    return written


def _repeat(array: NDArray, count: int) -> NDArray:
    """The request's candidates, again and again, to the number asked for."""
    return np.resize(array, (1, count, *array.shape[2:]))


def _is_candidate(spec: tf.TensorSpec) -> bool:
    """Whether its second axis is as long as a request has candidates."""
    return len(spec.shape) > 1 and spec.shape[1] is None


def _predict(
    model_name: str, signature: str, inputs: dict[str, NDArray], outputs: list[str]
) -> prediction_log_pb2.PredictionLog:
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = model_name
    request.model_spec.signature_name = signature
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(request)
    return log
