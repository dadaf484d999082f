"""TensorFlow Serving's REST API as a function from request to reply, without sockets."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from tensorflow_serving.apis import model_pb2

from serving.model_server.json_parser import json_text, parse_json
from serving.model_server.json_tensors import error_body, read_request, reply_cost, write_reply
from serving.model_server.messages import (
    metadata_json,
    metadata_reply,
    status_json,
    status_reply,
)
from serving.model_server.model_manager import ModelManager
from serving.model_server.predict import DEFAULT_SIGNATURE, run_signature
from serving.model_server.saved_model import SavedModel
from serving.model_server.status import ServingError, invalid
from serving.model_server.tensors import dtype_name
from serving.runtime.call import Call
from serving.runtime.errors import RuntimeRefusal
from serving.runtime.inflate import inflate
from serving.runtime.json_cost import json_cost, text_cost
from serving.runtime.memory_budget import Allowance

log = logging.getLogger(__name__)
_FLAGS = re.IGNORECASE | re.ASCII
_API = re.compile(r"/v1/.*", _FLAGS)
_VERSION = r"(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?"
_CALL = re.compile(rf"/v1/models/([^/:]+){_VERSION}:(classify|regress|predict)", _FLAGS)
_LOOK = re.compile(rf"/v1/models(?:/([^/:]+))?{_VERSION}(?:/(metadata))?", _FLAGS)
# Parsed, of one document; beyond this they are parsed one at a time.
_LARGE = 8 * 2**20
JSON_HEADERS = {"Content-Type": "application/json"}
_HTML = {"Content-Type": "text/html; charset=ISO-8859-1"}
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_NOT_FOUND = (
    b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n"
    b"</BODY></HTML>\n"
)


@dataclass(frozen=True)
class RestReply:
    """Status, headers and body of one HTTP reply."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class _Target:
    """What a path names."""

    spec: model_pb2.ModelSpec
    verb: str


class RestApi:
    """Answers REST calls; safe to call from many threads at once.

    Args:
        manager: Holds the models.
        cors: Allow calls from web pages of other origins.
    """

    def __init__(self, manager: ModelManager, cors: bool = False) -> None:
        self._manager = manager
        self._cors = _CORS if cors else {}
        # Parsing holds the interpreter, so side by side large documents take more memory and are
        # done no sooner.
        self._large = threading.Lock()

    def answer(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        call: Call,
        allowance: Allowance,
    ) -> RestReply:
        """Answer one request.

        Args:
            method: ``GET``, ``POST``, ...
            path: The request's target as it was sent: still encoded, with its query.
            headers: Only ``Origin`` and ``Content-Encoding`` count; names in any case.
            body: As it was sent, maybe compressed.
            call: Whose deadline stops a run.
            allowance: Asked before memory is taken.

        Raises:
            RuntimeRefusal: No time or no memory is left for it.
        """
        if not _API.fullmatch(path):
            return RestReply(404, _HTML, _NOT_FOUND)
        if method == "OPTIONS":
            known = re.search("https?://", headers.get("Origin", ""))
            return RestReply(200 if known else 400, {**_HTML, **self._cors})
        headers_out = {**JSON_HEADERS, **self._cors}
        try:
            target = _parse_path(method, path)
        except ServingError as error:
            # A version that is no int64 skips the JSON envelope.
            return RestReply(error.http_status, headers_out)
        # Closed when nothing of a large document is left, which an error keeps until it is handled.
        with ExitStack() as parsing:
            try:
                if "gzip" in headers.get("Content-Encoding", ""):
                    body = _inflate(body, allowance)
                content = self._dispatch(method, path, target, body, call, allowance, parsing)
            except RuntimeRefusal:
                raise
            except ServingError as error:
                return RestReply(error.http_status, headers_out, error_body(error.message))
            except Exception as error:
                log.exception("%s %s failed", method, path)
                return RestReply(500, headers_out, error_body(f"Internal error: {error}"))
        return RestReply(200, headers_out, content)

    def _dispatch(
        self,
        method: str,
        path: str,
        target: _Target | None,
        body: bytes,
        call: Call,
        allowance: Allowance,
        parsing: ExitStack,
    ) -> bytes:
        if target is not None and method == "POST":
            if target.verb == "predict":
                return self._predict(target.spec, body, call, allowance, parsing)
            if target.verb in ("classify", "regress"):
                raise ServingError(
                    "UNIMPLEMENTED", f"{target.verb} is not served here; call :predict"
                )
        elif target is not None and method == "GET":
            if not target.spec.name:
                raise invalid("Missing model name in request.")
            if target.verb == "metadata":
                return metadata_json(metadata_reply(self._manager, target.spec))
            version = target.spec.version.value if target.spec.HasField("version") else None
            return status_json(status_reply(self._manager, target.spec.name, version))
        raise invalid(f"Malformed request: {method} {path}")

    def _predict(
        self,
        spec: model_pb2.ModelSpec,
        body: bytes,
        call: Call,
        allowance: Allowance,
        parsing: ExitStack,
    ) -> bytes:
        cost = json_cost(body)
        if cost > _LARGE:
            parsing.enter_context(self._large)
            call.check("the body was parsed")
        allowance.take(cost + text_cost(body), "the parsed JSON")
        document = parse_json(body)
        name = document.get("signature_name", "")
        if not isinstance(name, str):
            raise invalid(
                f"JSON Value: {json_text(document)} not formatted correctly. 'signature_name' key "
                "must be a string value."
            )
        name = name or DEFAULT_SIGNATURE
        version = spec.version.value if spec.HasField("version") else None
        with self._manager.use(spec.name, version, spec.version_label) as (_, model):
            assert isinstance(model, SavedModel)
            signature = model.signatures.get(name)
            if signature is None:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            if not signature.inputs:
                raise invalid(f"Failed to get input map for signature: {name}")
            types = {alias: dtype_name(info.dtype) for alias, info in signature.inputs.items()}
            layout, inputs = read_request(document, types)
            del document
            parsing.close()
            call.check("the model ran")
            outputs = run_signature(model, signature, inputs, (), call.left)
        allowance.take(reply_cost(outputs), "the answer in JSON")
        return write_reply(outputs, layout)


def _parse_path(method: str, path: str) -> _Target | None:
    """What the path names, None if it names nothing.

    Raises:
        ServingError: The version does not fit into 64 bits.
    """
    pattern = {"POST": _CALL, "GET": _LOOK}.get(method)
    found = pattern.fullmatch(path) if pattern else None
    if found is None:
        return None
    name, version, label, verb = found.groups()
    spec = model_pb2.ModelSpec(name=_decode(name or ""))
    if version:
        if int(version) >= 2**63:
            raise invalid(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(version)
    if label:
        spec.version_label = _decode(label)
    return _Target(spec, verb or "")


def _decode(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "replace")


def _inflate(body: bytes, allowance: Allowance) -> bytes:
    """A gzip body's content; one that cannot be inflated counts as empty."""
    try:
        return inflate(body, allowance)
    except ValueError:
        return b""
