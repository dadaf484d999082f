"""``ReadRequest``: the checked arguments of a read (ids, time bounds, limits, filters)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from seqvault.errors import InvalidRequestError, LimitError, WrongTypeError
from seqvault.memory.key_table import for_kernel
from seqvault.schema import Schema
from seqvault.times import NO_BOUND, check_times

MAX_LAST_N = 1 << 20
MAX_READ_EVENTS = 1 << 28  # cells of one answer
USERS_A_PAGE = 1 << 20  # ids of one call
_NO_BOUND = np.full(1, NO_BOUND, np.int64)
_INT64 = np.dtype(np.int64)


class ReadRequest(NamedTuple):
    """The checked arguments of ``SeqVault.read``.

    Args:
        users: int64 [B].
        before: int64, bound on time of each user, or [1]: one for all.
        last_n: most events of each user.
        names: of the fields of the answer.
        filters: field and wanted values, ascending, that keep an event; empty: all are kept.
        version: int64 [B], the versions to repeat; None: the present.
    """

    users: np.ndarray
    before: np.ndarray
    last_n: int
    names: tuple[str, ...]
    filters: Sequence[tuple[str, np.ndarray]] = ()
    version: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        schema: Schema,
        user_ids: Any,
        before: Any,
        last_n: Any,
        scenarios: Sequence[int] | None = None,
        actions: Sequence[int] | None = None,
        fields: Sequence[str] | None = None,
        version: Any = None,
    ) -> "ReadRequest":
        """Checks the arguments of ``SeqVault.read``.

        Raises:
            InvalidRequestError: an argument is wrong (its subclasses say how).
            LimitError: the answer would be too large.
        """
        users = _users_of(user_ids)
        rows = len(users)
        filtered = scenarios is not None or actions is not None
        return cls(
            users,
            _NO_BOUND if before is None else bounds_of(before, rows),
            check_last_n(last_n, rows),
            schema.select(fields),
            filters_of(schema, scenarios, actions) if filtered else (),
            None if version is None else versions_of(version, rows),
        )

    @property
    def plain(self) -> bool:
        """Whether it reads the newest events before a time, without filters and version."""
        return not self.filters and self.version is None

    def bounds(self) -> np.ndarray:
        """int64 [B], the bound on time of each user."""
        rows = len(self.users)
        return self.before if len(self.before) == rows else np.repeat(self.before, rows)

    def versions(self) -> np.ndarray:
        """int64 [B], the versions to repeat, -1 for the present."""
        return np.full(len(self.users), -1, np.int64) if self.version is None else self.version


def _users_of(user_ids: Any) -> np.ndarray:
    """``ids_of``; what is as it must be already passes quickly."""
    if type(user_ids) is np.ndarray and user_ids.dtype is _INT64 and user_ids.ndim == 1:
        flags = user_ids.flags
        if flags.c_contiguous and flags.writeable and flags.aligned:
            return user_ids
    return ids_of(user_ids, "user_ids")


def ids_of(values: Any, what: str) -> np.ndarray:
    """int64 [B] of ids, checked."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise InvalidRequestError(f"{what} must be a flat list of ids; received {array.ndim} axes.")
    if array.size and array.dtype.kind not in "iu":
        raise WrongTypeError(f"{what} have type {array.dtype}; expected int64.")
    if array.dtype == np.uint64 and array.size and array.max() > NO_BOUND:
        raise InvalidRequestError(f"{what} has {array.max()}, beyond int64.")
    return for_kernel(array)


def bounds_of(before: Any, rows: int) -> np.ndarray:
    """int64 [B] of the bound on time."""
    array = np.asarray(before)
    if array.dtype.kind not in "iu":
        raise WrongTypeError(f"before has type {array.dtype}; expected int64 milliseconds.")
    if array.ndim > 1 or (array.ndim == 1 and len(array) != rows):
        raise InvalidRequestError(
            f"before has shape {array.shape}; expected one time, or one for each of {rows} users."
        )
    bound = np.empty(rows, np.int64)
    bound[:] = array
    check_times(bound, "before", bounds=True)
    return bound


def check_last_n(last_n: Any, rows: int) -> int:
    """The most events per user, checked together with the number of users.

    Raises:
        InvalidRequestError: it is not a whole number of at least 1.
        LimitError: the answer would be too large.
    """
    if (type(last_n) is not int and not isinstance(last_n, np.integer)) or last_n < 1:
        raise InvalidRequestError(f"last_n must be a whole number of at least 1; got {last_n}.")
    if last_n > MAX_LAST_N or rows * last_n > MAX_READ_EVENTS:
        raise LimitError(
            f"a read of {rows} users times last_n={last_n} is beyond the limit of "
            f"{MAX_LAST_N} events a user and {MAX_READ_EVENTS} a call; ask for less."
        )
    return int(last_n)


def versions_of(version: Any, rows: int) -> np.ndarray:
    """int64 [B] of the versions to repeat."""
    seen = ids_of(version, "version")
    if len(seen) != rows or (seen < 0).any():
        raise InvalidRequestError(
            f"version must be the {rows} numbers of an earlier read of these users."
        )
    return seen


def filters_of(
    schema: Schema, scenarios: Sequence[int] | None, actions: Sequence[int] | None
) -> list[tuple[str, np.ndarray]]:
    """Field and int64 wanted values, ascending, of each filter."""
    filters = []
    for role, wanted in (("scenario", scenarios), ("action", actions)):
        if wanted is None:
            continue
        field = schema.with_role(role)
        if field is None:
            raise InvalidRequestError(
                f"{role}s were given but no field has the role {role!r}; set "
                f"seqvault.role={role} in the metadata of one, or leave {role}s out."
            )
        filters.append((field.name, np.unique(ids_of(wanted, f"{role}s"))))
    return filters


def page_of(after: Any, limit: Any) -> tuple[int, int]:
    """The bound of a page of user ids (0 for None) and its length, checked."""
    for name, value in (("after", 0 if after is None else after), ("limit", limit)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise WrongTypeError(f"{name} has type {type(value).__name__}; expected an integer.")
    if after is not None and not -NO_BOUND - 1 <= after <= NO_BOUND:
        raise InvalidRequestError(f"after is {after}, beyond int64.")
    if not 1 <= limit <= USERS_A_PAGE:
        raise InvalidRequestError(
            f"limit is {limit}; a page has 1 to {USERS_A_PAGE} users. Ask for the next page "
            "with after=."
        )
    return int(after or 0), int(limit)
