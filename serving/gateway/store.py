"""Opens the SeqVault that the gateway reads from and appends to, and checks that it fits."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

import seqvault
from laser_features import FeatureSpec, FeatureSpecError, history_fields
from seqvault.errors import InvalidRequestError
from seqvault.service.address import is_address
from seqvault.service.client import SeqVaultClient
from seqvault.service.sharded_client import ShardedClient
from seqvault.warm_up import warm_up
from serving.gateway.options import StoreAccess

_FIRST_MILLISECOND = 1


class Store(Protocol):
    """The methods of a SeqVault or its client that the gateway uses."""

    def read(self, user_ids: Any, before: Any, last_n: int, *, fields: Any) -> Any:
        """Histories of users."""

    def read_items(self, ids: Any, fields: Any = None) -> Any:
        """Side information of items."""

    def append(self, events: Any) -> Any:
        """Store events durably."""

    def close(self) -> None:
        """Release it."""


def open_store(
    where: str, timeout_seconds: float = 10.0, access: StoreAccess | None = None
) -> Store:
    """Open a store's folder for writing, or connect to ``host:port``.

    Args:
        where: The folder or the address.
        timeout_seconds: Longest time that a call to a server may take.
        access: What the server asks for; None: nothing.

    Raises:
        SeqVaultError: It is not there, is damaged, another process writes to it, or the server
            does not take the token or the certificate.
        OSError: A file of ``access`` cannot be read.
    """
    if not is_address(where):
        warm_up()  # or the first request, or the first event, waits for the compiler
    access = access or StoreAccess()
    return seqvault.open(
        where,
        token_file=access.token_file,
        ca=access.ca,
        key=access.key,
        certificate=access.certificate,
        timeout=timeout_seconds,
    )


def time_for(store: Store, seconds: float) -> dict[str, Any]:
    """The argument that bounds a read from a server; a store in this process takes none."""
    return {"timeout": seconds} if isinstance(store, SeqVaultClient | ShardedClient) else {}


def check_store(store: Store, spec: FeatureSpec, where: str) -> None:
    """Check that the store has the fields that the feature spec reads, with its types.

    Raises:
        FeatureSpecError: A field is missing or has another type.
    """
    items = [field.name for field in spec.item_fields.values() if field.table is not None]
    nobody = np.zeros(1, np.int64)
    try:
        history = store.read(
            nobody, np.array([_FIRST_MILLISECOND]), spec.max_history, fields=history_fields(spec)
        )
        side = store.read_items(nobody, fields=items) if items else {}
    except InvalidRequestError as error:
        raise FeatureSpecError(
            f"the store {where} does not fit the feature spec {spec.name!r}: {error}"
        ) from error
    for batch, fields in ((history, spec.event_fields), (side, spec.item_fields)):
        for name, field in fields.items():
            if name in batch and np.asarray(batch[name]).dtype != field.dtype:
                raise FeatureSpecError(
                    f"the store {where} does not fit the feature spec {spec.name!r}: {name!r} is "
                    f"{np.asarray(batch[name]).dtype} in the store and {field.dtype} in the spec"
                )
