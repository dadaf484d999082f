"""Compares the answers of a model server with those of its SavedModel."""

from __future__ import annotations

import base64
import json
import math
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

TOLERANCE = 1e-5
_PADDING = {tf.int32: 0, tf.int64: -1, tf.float32: math.nan}


def model_inputs(example: tf.train.Example, signature: Any) -> dict[str, NDArray]:
    """The tensors of one request, [1, ...], as a signature with named raw inputs takes them.

    Examples hold no padding; histories are padded to the signature's fixed length, with what each
    dtype means as missing: 0 for rows, -1 for raw ids, NaN for raw numbers.

    Args:
        example: What SeqVaultExampleGen wrote.
        signature: A loaded SavedModel's signature.
    """
    inputs = {}
    for name, spec in signature.structured_input_signature[1].items():
        feature = example.features.feature[name]
        values = feature.float_list.value or feature.int64_list.value
        array = np.asarray(values, spec.dtype.as_numpy_dtype)
        if len(spec.shape) == 1:
            inputs[name] = array.reshape(1)
            continue
        several = tuple(spec.shape[2:])  # values of one event or candidate
        rows = array.reshape(-1, *several)
        shape = (1, spec.shape[1] or len(rows), *several)
        padded = np.full(shape, _PADDING[spec.dtype], spec.dtype.as_numpy_dtype)
        padded[0, : len(rows)] = rows
        inputs[name] = padded
    return inputs


def check_answers(
    model: Any, examples: Iterable[bytes], predict_url: str, timeout_seconds: float = 30
) -> list[str]:
    """Send requests over REST in both forms the model takes, and compare with its own answers.

    Args:
        model: The SavedModel, loaded in this process.
        examples: Serialized Examples, one request each.
        predict_url: ``http://host:port/v1/models/NAME:predict``.
        timeout_seconds: For one answer.

    Returns:
        What was wrong, one line each; empty if every answer was right.
    """
    problems = []
    for number, serialized in enumerate(examples):
        raw = model_inputs(tf.train.Example.FromString(serialized), model.signatures[DEFAULT])
        tensors = {name: tf.constant(value) for name, value in raw.items()}
        bodies: dict[str, tuple[dict[str, Any], Mapping[str, tf.Tensor]]] = {
            DEFAULT: (
                {"inputs": {name: value.tolist() for name, value in raw.items()}},
                model.signatures[DEFAULT](**tensors),
            ),
            EXAMPLES: (
                {"inputs": [{"b64": base64.b64encode(serialized).decode()}]},
                _examples_answer(model.signatures[EXAMPLES], serialized),
            ),
        }
        for signature, (body, expected) in bodies.items():
            problem = _compare(
                _post(predict_url, {"signature_name": signature, **body}, timeout_seconds),
                {name: value.numpy() for name, value in expected.items()},
            )
            if problem:
                problems.append(f"request {number}, signature {signature}: {problem}")
    return problems


DEFAULT = "serving_default"
EXAMPLES = "serving_examples"


def _examples_answer(signature: Any, serialized: bytes) -> Mapping[str, tf.Tensor]:
    (name,) = signature.structured_input_signature[1]
    answer: Mapping[str, tf.Tensor] = signature(**{name: tf.constant([serialized])})
    return answer


def _post(url: str, body: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        return {"error": f"HTTP {error.code}: {error.read().decode(errors='replace')[:500]}"}
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        return {"error": str(error)}


def _compare(answer: dict[str, Any], expected: dict[str, NDArray]) -> str:
    """What is wrong with an answer, or an empty string."""
    if "outputs" not in answer:
        return f"no outputs but {answer.get('error', answer)}"
    outputs = answer["outputs"]
    named = outputs if isinstance(outputs, dict) else dict.fromkeys(expected, outputs)
    for name, value in expected.items():
        received = np.asarray(named.get(name, []), np.float64)
        if received.shape != value.shape:
            return f"{name} has shape {received.shape}, the model's own answer {value.shape}"
        difference = float(np.max(np.abs(received - value), initial=0.0))
        if not difference <= TOLERANCE:
            return (
                f"{name} differs from the model's own answer by {difference:.2g}, "
                f"allowed are {TOLERANCE:.0e}"
            )
        if not np.all(np.isfinite(received)):
            return f"{name} is not finite: {received.tolist()}"
    return ""
