"""One named array that the model takes."""

from __future__ import annotations

from dataclasses import dataclass

from laser_features.field import Field


@dataclass(frozen=True)
class ModelInput:
    """Name, dtype and origin of one model input.

    Attributes:
        name: Key in ``build_model_inputs``'s answer, in Examples and in the serving signature.
        dtype: ``int32`` (rows, ages, lengths), ``int64`` (raw ids of a vocabulary table) or
            ``float32`` (raw values of a quantiles field).
        kind: Decides the shape: ``history`` [B, L], ``candidate`` [B, N] or ``request`` [B]; a
            field that holds several ``values`` has one more axis of that length.
        field: The spec's field, or None for ``history_age_seconds`` and ``history_length``.
        table: Name of the embedding table, or None for these two.
        transform: ``vocabulary`` or ``quantiles`` where Transform maps the raw value to a row.
    """

    name: str
    dtype: str
    kind: str
    field: Field | None = None
    table: str | None = None
    transform: str | None = None

    @property
    def values(self) -> int | None:
        """Values that the field holds at once, V; None for one."""
        return None if self.field is None else self.field.values

    @property
    def padding(self) -> int | float:
        """Value of padding and of missing: 0 for rows, -1 for raw ids, NaN for raw floats."""
        if self.transform == "vocabulary":
            return -1
        return float("nan") if self.transform == "quantiles" else 0
