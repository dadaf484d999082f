"""JSON as TensorFlow Serving parses it: bare NaN and Infinity, its error texts, raw bytes.

The standard library's parser, written in C, reads what both parsers agree on; anything unusual
goes to ``StrictParser``, which reports errors with the offset in bytes.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from serving.model_server.decimals import format_decimals
from serving.model_server.status import ServingError, invalid

# What a number that may overflow a double looks like when every digit is a zero. Finding plain
# bytes in a translated copy takes a tenth of the time of a pattern with alternatives.
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_LARGE = (b"e000", b"e+000", b"0" * 300)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(rb"[ \t\r\n]*")
_NUMBER = re.compile(rb"-?(?:NaN|Inf(?:inity)?)|-?(0|[1-9]\d*)?(\.\d*)?(?:([eE][+-]?)(\d*))?")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_ESCAPES = {
    b'"': b'"', b"\\": b"\\", b"/": b"/", b"b": b"\b",
    b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t",
}  # fmt: skip
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
# A whole document in an error message would take many times the memory of its request.
_MOST_TEXT = 2**14
_SURROGATES = "surrogateescape"


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a request's body, whose top level must be an object.

    Bytes that are not UTF-8 survive inside strings as lone surrogates (``surrogateescape``).

    Raises:
        ServingError: INVALID_ARGUMENT with what is wrong and where.

    Example:
        >>> parse_json(b'{"instances": [1.5, NaN, -Infinity]}')
        {'instances': [1.5, nan, -inf]}
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    value: Any = None
    unusual = is_unusual(body)
    if not unusual:
        try:
            value = json.loads(
                body.decode("utf-8", _SURROGATES), object_pairs_hook=_object_of_pairs
            )
        except (ValueError, RecursionError):
            unusual = True
    if unusual:
        try:
            value = StrictParser(body).parse()
        except RecursionError:
            raise invalid("JSON Parse error: The document is nested too deeply") from None
    if not isinstance(value, dict):
        raise invalid(f"JSON Value: {json_text(value)} Is not object")
    return value


def is_unusual(body: bytes) -> bool:
    """Whether the two parsers may differ: a huge number, a lone surrogate, a byte order mark.

    Example:
        >>> is_unusual(b"[1e400]"), is_unusual(b"[1e40, 1234]")
        (True, False)
    """
    if body.startswith(_BYTE_ORDER_MARK) or _SURROGATE.search(body):
        return True
    digits = body.translate(_DIGITS)
    return any(large in digits for large in _LARGE)


def json_text(value: Any) -> str:
    """A parsed value as error messages print it."""
    if isinstance(value, float):
        dtype = np.float32 if abs(value) <= _LARGEST_FLOAT else np.float64
        return format_decimals(np.array([value], dtype))[0].decode()
    text = ""
    for piece in json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value):
        text += piece
        if len(text) > _MOST_TEXT:
            return text[:_MOST_TEXT] + "..."
    return text


def json_type(value: Any) -> str:
    """Name of a parsed value's JSON type as error messages print it."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, (int, float)):
        return "Number"
    return "String" if isinstance(value, str) else "Array" if isinstance(value, list) else "Object"


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key given twice, the first counts."""
    made = dict(pairs)
    return made if len(made) == len(pairs) else dict(reversed(pairs))


class StrictParser:
    """A recursive parser over bytes whose errors name the offset of the fault.

    Example:
        >>> StrictParser(b'{"a": [1, Inf]}').parse()
        {'a': [1, inf]}
        >>> try:
        ...     StrictParser(b'{"a" 1}').parse()
        ... except ServingError as error:
        ...     print(error.message)
        JSON Parse error: Missing a colon after a name of object member. at offset: 5
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = len(_BYTE_ORDER_MARK) if body.startswith(_BYTE_ORDER_MARK) else 0

    def parse(self) -> Any:
        """The whole document's value.

        Raises:
            ServingError: INVALID_ARGUMENT with what is wrong and where.
        """
        self._skip_space()
        if self._at >= len(self._body):
            raise self._error("The document is empty.")
        value = self._value()
        self._skip_space()
        if self._at < len(self._body):
            raise self._error("The document root must not be followed by other values.")
        return value

    def _value(self) -> Any:
        first = self._peek()
        if first == b"{":
            return self._object()
        if first == b"[":
            return self._array()
        if first == b'"':
            return self._string()
        for word, value in ((b"null", None), (b"true", True), (b"false", False)):
            if first == word[:1]:
                if not self._body.startswith(word, self._at):
                    raise self._error("Invalid value.", self._common_prefix(word))
                self._at += len(word)
                return value
        return self._number()

    def _object(self) -> dict[str, Any]:
        self._at += 1
        made: dict[str, Any] = {}
        self._skip_space()
        if self._take(b"}"):
            return made
        while True:
            if self._peek() != b'"':
                raise self._error("Missing a name for object member.")
            key = self._string()
            self._skip_space()
            if not self._take(b":"):
                raise self._error("Missing a colon after a name of object member.")
            self._skip_space()
            value = self._value()
            made.setdefault(key, value)
            self._skip_space()
            if self._take(b"}"):
                return made
            if not self._take(b","):
                raise self._error("Missing a comma or } after an object member.")
            self._skip_space()

    def _array(self) -> list[Any]:
        self._at += 1
        made: list[Any] = []
        self._skip_space()
        if self._take(b"]"):
            return made
        while True:
            made.append(self._value())
            self._skip_space()
            if self._take(b"]"):
                return made
            if not self._take(b","):
                raise self._error("Missing a comma or ] after an array element.")
            self._skip_space()

    def _string(self) -> str:
        self._at += 1
        parts = bytearray()
        while True:
            plain = _PLAIN.match(self._body, self._at)
            assert plain is not None
            parts += plain.group()
            self._at = plain.end()
            if self._take(b'"'):
                return bytes(parts).decode("utf-8", _SURROGATES)
            if self._peek() != b"\\":
                ended = self._peek() in (b"", b"\0")
                raise self._error(
                    "Missing a closing quotation mark in string."
                    if ended
                    else "Invalid encoding in string."
                )
            parts += self._escape()

    def _escape(self) -> bytes:
        start = self._at
        letter = self._body[start + 1 : start + 2]
        if letter in _ESCAPES:
            self._at += 2
            return _ESCAPES[letter]
        if letter != b"u":
            raise self._error("Invalid escape character in string.")
        self._at += 2
        code = self._hex(start)
        if 0xD800 <= code <= 0xDFFF:
            paired = self._body.startswith(b"\\u", self._at)
            if code > 0xDBFF or not paired:
                raise self._error("The surrogate pair in string is invalid.", start - self._at)
            self._at += 2
            low = self._hex(start)
            if not 0xDC00 <= low <= 0xDFFF:
                raise self._error("The surrogate pair in string is invalid.", start - self._at)
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        return chr(code).encode("utf-8")

    def _hex(self, start: int) -> int:
        digits = self._body[self._at : self._at + 4]
        if not re.fullmatch(rb"[0-9a-fA-F]{4}", digits):
            raise self._error("Incorrect hex digit after \\u escape in string.", start - self._at)
        self._at += 4
        return int(digits, 16)

    def _number(self) -> int | float:
        found = _NUMBER.match(self._body, self._at)
        assert found is not None
        start, text = self._at, found.group()
        integer, fraction, exponent, power = found.groups()
        if text.endswith((b"NaN", b"Inf", b"Infinity")):
            self._at = found.end()
            return float(text)
        if integer is None:
            raise self._error("Invalid value.", 1 if text.startswith(b"-") else 0)
        if fraction == b".":
            raise self._error("Miss fraction part in number.", found.start(2) + 1 - start)
        if exponent is not None and not power:
            raise self._error("Miss exponent in number.", found.end() - start)
        self._at = found.end()
        if fraction is None and exponent is None and len(integer) <= 20:
            whole = int(text)
            if -(2**63) <= whole < 2**64:
                return whole
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise self._error("Number too big to be stored in double.", start - self._at)
        return value

    def _peek(self) -> bytes:
        return self._body[self._at : self._at + 1]

    def _take(self, character: bytes) -> bool:
        taken = self._peek() == character
        self._at += taken
        return taken

    def _skip_space(self) -> None:
        space = _SPACE.match(self._body, self._at)
        assert space is not None
        self._at = space.end()

    def _common_prefix(self, word: bytes) -> int:
        length = 0
        while self._body[self._at + length : self._at + length + 1] == word[length : length + 1]:
            length += 1
        return length

    def _error(self, problem: str, ahead: int = 0) -> ServingError:
        return invalid(f"JSON Parse error: {problem} at offset: {self._at + ahead}")
