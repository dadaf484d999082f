"""Serialisation that server and client share: arrays, tables and errors."""

import inspect
from typing import Any

import grpc
import numpy as np
import pyarrow as pa

from seqvault import errors

NAME = "seqvault.v1.SeqVault"
ERROR_KEY = "seqvault-error"
MAX_MESSAGE = 256 << 20

_CODES: list[tuple[type[Exception], grpc.StatusCode]] = [
    (errors.AccessDeniedError, grpc.StatusCode.UNAUTHENTICATED),
    (errors.InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.ProtocolError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.LimitError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DiskFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DamagedFileError, grpc.StatusCode.DATA_LOSS),
    (errors.SourceConflictError, grpc.StatusCode.ABORTED),
    (errors.ReadOnlyError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.StoreClosedError, grpc.StatusCode.UNAVAILABLE),
    (errors.SeqVaultError, grpc.StatusCode.INTERNAL),
]
# What a call ended by gRPC itself says of the server; one that stops cancels what comes too late.
_UNAVAILABLE = {
    grpc.StatusCode.UNAVAILABLE: "cannot be reached",
    grpc.StatusCode.DEADLINE_EXCEEDED: "took too long",
    grpc.StatusCode.CANCELLED: "stopped before it answered",
}
_BY_NAME = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.SeqVaultError)
}


def error_named(name: str) -> type[errors.SeqVaultError]:
    """The error of that name; ``SeqVaultError`` if there is none."""
    return _BY_NAME.get(name, errors.SeqVaultError)


def code_of(error: Exception) -> grpc.StatusCode:
    """The gRPC status that stands for an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.UNKNOWN)


def error_of(
    call: grpc.RpcError, target: str, request_id: str, method: str
) -> errors.SeqVaultError:
    """The typed error that a failed call of a method stands for."""
    code = call.code()
    for key, value in call.trailing_metadata() or ():
        if key == ERROR_KEY and value in _BY_NAME:
            return _BY_NAME[value](call.details())
    if "CERTIFICATE_VERIFY_FAILED" in str(call.details()):
        return errors.AccessDeniedError(
            f"the SeqVault server at {target} shows a certificate that is not of the authority "
            f"given as ca, or not for this name ({call.details()}); check both."
        )
    what = _UNAVAILABLE.get(code)
    if what is not None:
        return errors.ServerUnavailableError(
            f"the SeqVault server at {target} {what} ({call.details()}); check that it runs "
            "there, and whether it asks for TLS or a client's certificate, and try again (request "
            f"{request_id})."
        )
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return errors.OlderServerError(
            f"the server at {target} does not know the call {method}: it runs an older version of "
            "seqvault than this client, or is no SeqVault server. Upgrade the server, or do "
            f"without this call (request {request_id})."
        )
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:  # said by gRPC itself: too many, or too large
        return errors.LimitError(
            f"the SeqVault server at {target} refused the call ({call.details()}); try again "
            "later, or ask for less at a time."
        )
    return errors.SeqVaultError(
        f"the SeqVault server at {target} failed: {call.details()} (see its log for request "
        f"{request_id})."
    )


def table_to_bytes(table: pa.Table) -> bytes:
    """An Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def table_from_bytes(data: bytes) -> pa.Table:
    """Parses what ``table_to_bytes`` returned.

    Raises:
        InvalidRequestError: it is not an Arrow IPC stream.
    """
    try:
        with pa.ipc.open_stream(data) as reader:
            return reader.read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise errors.InvalidRequestError(f"not an Arrow IPC stream: {error}") from error


def array_from_bytes(data: bytes, dtype: Any, what: str) -> np.ndarray:
    """A little-endian array.

    Raises:
        InvalidRequestError: the length does not fit.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    if len(data) % kind.itemsize:
        raise errors.InvalidRequestError(
            f"{what} has {len(data)} bytes, not a multiple of {kind.itemsize}."
        )
    return np.frombuffer(data, kind)
