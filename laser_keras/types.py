"""Aliases for annotations, so that no backend is imported for typing."""

from typing import Any

Tensor = Any
"""A tensor of the active Keras backend, a ``KerasTensor`` or a NumPy array."""

Shape = tuple[int | None, ...]
"""A static shape; ``None`` marks a dimension that is only known at run time."""
