"""Bearer tokens with scopes and expiry."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from seqvault.errors import AccessDeniedError, InvalidRequestError

SCOPES = ("read", "write")


@dataclass(frozen=True)
class _Grant:
    scopes: tuple[str, ...]
    expires: float  # seconds since 1970


class Tokens:
    """The tokens that a server takes; safe for many threads.

    A file is read again when it changes, so that tokens can be added and withdrawn while the
    server runs; one that cannot be read then leaves the tokens as they are.

    Args:
        source: ``{"secret": ["read"], "other": {"scopes": ["read", "write"], "expires":
            "2030-01-31T00:00:00+00:00"}}``, or a JSON file with it.
        clock: seconds since 1970, for tests.

    Example:
        >>> tokens = Tokens({"secret": ["read"]})
        >>> tokens.check("Bearer secret", "read")
        >>> tokens.check("Bearer secret", "write")
        Traceback (most recent call last):
        seqvault.errors.AccessDeniedError: the token is not good for this: it needs 'write'.
    """

    def __init__(
        self, source: Path | Mapping[str, Any], clock: Callable[[], float] = time.time
    ) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._source = source
        self._file = source if isinstance(source, Path) else None
        self._seen = self._stamp()
        self._grants = _grants_of(source if isinstance(source, Mapping) else _read(source))

    @property
    def source(self) -> str | dict[str, Any]:
        """What another process makes the same tokens of: the file's path, or the entries."""
        if isinstance(self._source, Path):
            return str(self._source.absolute())
        return dict(self._source)

    def check(self, authorization: str, scope: str) -> None:
        """Raises ``AccessDeniedError`` unless the token has the scope.

        Args:
            authorization: the value of the metadata key of that name.
            scope: ``read`` or ``write``.

        Raises:
            AccessDeniedError: no such token, expired, or without the scope.
        """
        self._read_again()
        grant = self._grants.get(_digest(authorization.removeprefix("Bearer ")))
        if grant is None:
            raise AccessDeniedError(
                "the token is missing or unknown; give one that the server knows."
            )
        if self._clock() >= grant.expires:
            raise AccessDeniedError("the token has expired; ask for a new one.")
        if scope not in grant.scopes:
            raise AccessDeniedError(f"the token is not good for this: it needs {scope!r}.")

    def _stamp(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def _read_again(self) -> None:
        with self._lock:
            stamp = self._stamp()
            if self._file is None or stamp is None or stamp == self._seen:
                return
            try:
                self._grants = _grants_of(_read(self._file))
            except (InvalidRequestError, OSError):
                return  # half-written: look again at the next call
            self._seen = stamp


def _digest(token: str) -> bytes:
    """A digest to look up instead of the secret, so that timing reveals nothing about it."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of bytes that are no text, too
        raise InvalidRequestError(f"the token file {file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequestError(f"the token file {file} must hold one JSON object.")
    return content


def _grants_of(entries: Mapping[str, Any]) -> dict[bytes, _Grant]:
    return {_digest(token): _grant_of(entry) for token, entry in entries.items()}


def _grant_of(entry: Any) -> _Grant:
    whole = entry if isinstance(entry, Mapping) else {"scopes": entry}
    scopes, expires = whole.get("scopes"), whole.get("expires")
    if (
        not isinstance(scopes, Sequence)
        or isinstance(scopes, str)
        or not all(scope in SCOPES for scope in scopes)
        or not set(whole) <= {"scopes", "expires"}
    ):
        raise InvalidRequestError(
            f"a token's entry is a list of scopes from {list(SCOPES)}, or an object with "
            f"'scopes' and 'expires'; received {entry!r}."
        )
    if expires is None:
        return _Grant(tuple(scopes), float("inf"))
    try:
        moment = datetime.fromisoformat(expires.replace("Z", "+00:00"))
    except (AttributeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidRequestError(
            f"a token's 'expires' is a time with zone, e.g. 2030-01-31T00:00:00Z; got {expires!r}."
        )
    return _Grant(tuple(scopes), moment.timestamp())
