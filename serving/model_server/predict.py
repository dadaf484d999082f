"""One prediction: check the request against a signature, run it, name the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from numpy.typing import NDArray
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.model_server.saved_model import SERVING_POOL, SavedModel
from serving.model_server.status import ServingError, invalid
from serving.model_server.tensors import to_array

DEFAULT_SIGNATURE = "serving_default"


def find_signature(model: SavedModel, name: str) -> meta_graph_pb2.SignatureDef:
    """The signature of that name.

    Raises:
        ServingError: FAILED_PRECONDITION: the model has none of that name.
    """
    if name not in model.signatures:
        raise ServingError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    return model.signatures[name]


def parse_inputs(
    protos: Mapping[str, tensor_pb2.TensorProto],
    signature: meta_graph_pb2.SignatureDef,
    take: Callable[[int, str], object] = lambda size, what: None,
) -> dict[str, NDArray]:
    """Arrays of a request's tensors by input alias, defaults filled in.

    Args:
        protos: The request's tensors.
        signature: What the model takes.
        take: Called with the bytes of each array, and its name, before they are taken; raises to
            refuse them.

    Raises:
        ServingError: INVALID_ARGUMENT: inputs missing, too many, unknown or malformed.
    """
    defaults = getattr(signature, "defaults", {})
    _check_count(protos, signature, bool(defaults))
    arrays = {}
    for alias, info in signature.inputs.items():
        if alias in protos:
            proto = protos[alias]
        elif alias in defaults:
            proto = defaults[alias]
        else:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request and "
                f"no default value provided. Inputs expected to be in the request {{{_set(protos)}"
                f"}}, or default input alias set: {_set(defaults)}"
            )
        try:
            arrays[alias] = to_array(proto, partial(_take, take, f"the tensor {alias!r}"))
        except ValueError as error:
            raise invalid(f"tensor parsing error: {alias}") from error
    if unknown := set(protos) - set(arrays):
        used = _set(set(protos) - unknown)
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {used}, request input: "
            f"{_set(protos)}"
        )
    return arrays


def run_signature(
    model: SavedModel,
    signature: meta_graph_pb2.SignatureDef,
    inputs: Mapping[str, NDArray],
    output_filter: Iterable[str] = (),
    timeout_seconds: float | None = None,
    pool: int = SERVING_POOL,
) -> dict[str, NDArray]:
    """Run the signature and return its outputs by alias, or only those asked for.

    Raises:
        ServingError: INVALID_ARGUMENT for an unknown or repeated output; whatever the run gives.
    """
    asked: list[str] = []
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {{{_set(signature.outputs)}}}."
            )
        if alias in asked:
            raise invalid(f"duplicate output tensor alias: {alias}")
        asked.append(alias)
    aliases = asked or list(signature.outputs)
    feeds = {signature.inputs[alias].name: array for alias, array in inputs.items()}
    fetches = [signature.outputs[alias].name for alias in aliases]
    return dict(zip(aliases, model.run(feeds, fetches, timeout_seconds, pool), strict=True))


def _take(take: Callable[[int, str], object], what: str, size: int) -> None:
    take(size, what)


def _check_count(
    protos: Mapping[str, tensor_pb2.TensorProto],
    signature: meta_graph_pb2.SignatureDef,
    has_defaults: bool,
) -> None:
    sent, wanted = set(protos), set(signature.inputs)
    if len(sent) > len(wanted) or (len(sent) < len(wanted) and not has_defaults):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({{{_set(sent)}}}) != len({{{_set(wanted)}}}). Sent extra: "
            f"{{{_set(sent - wanted)}}}. Missing but required: {{{_set(wanted - sent)}}}."
        )


def _set(names: Iterable[str]) -> str:
    return ",".join(sorted(names))
