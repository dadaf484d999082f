"""Runs the warm-up requests stored with a model before it is served."""

from __future__ import annotations

import logging
from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.model_server.predict import (
    DEFAULT_SIGNATURE,
    find_signature,
    parse_inputs,
    run_signature,
)
from serving.model_server.saved_model import LOADING_POOL, SavedModel
from serving.model_server.status import NAMES, ServingError, invalid

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
_MAX_RECORDS = 1000
_NOT_SERVED = ("classify_log", "regress_log", "multi_inference_log")
log = logging.getLogger(__name__)


def warm_up(model: SavedModel) -> int:
    """Run a model's warm-up requests, a TFRecord file of ``PredictionLog``.

    Returns:
        The number of requests that ran; 0 if the model has no such file.

    Raises:
        ServingError: The file cannot be read, holds more than 1000 records, or a request fails:
            the version must not be served.
    """
    path = model.path / WARMUP_FILE
    if not path.is_file():
        return 0
    ran = 0
    for number, record in enumerate(_read_records(path)):
        if number >= _MAX_RECORDS:
            raise invalid(
                f"Number of warmup records exceeds the maximum ({_MAX_RECORDS}) at {path}"
            )
        ran += _replay(model, record, path)
    return ran


def _read_records(path: Path) -> list[bytes]:
    try:
        records = tf.data.TFRecordDataset(str(path)).take(_MAX_RECORDS + 1)
        return list(records.as_numpy_iterator())
    except tf.errors.OpError as error:
        raise ServingError(
            NAMES.get(error.error_code, "UNKNOWN"),
            f"Failed to read warmup record: {error.message} from {path}. Please verify the "
            "warmup file is a TFRecord",
        ) from error


def _replay(model: SavedModel, record: bytes, path: Path) -> bool:
    try:
        logged = prediction_log_pb2.PredictionLog.FromString(record)
    except Exception as error:  # protobuf's class for it differs between versions
        raise invalid(f"Failed to parse warmup record from {path}") from error
    kind = logged.WhichOneof("log_type")
    if kind in _NOT_SERVED:
        log.warning("A warm-up request of kind %s in %s was skipped: it is not served", kind, path)
        return False
    if kind != "predict_log":
        raise ServingError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {kind}")
    request = logged.predict_log.request
    signature = find_signature(model, request.model_spec.signature_name or DEFAULT_SIGNATURE)
    inputs = parse_inputs(request.inputs, signature)
    run_signature(model, signature, inputs, request.output_filter, pool=LOADING_POOL)
    return True
