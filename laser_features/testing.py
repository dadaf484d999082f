"""The smallest feature spec, for tests and examples."""

from typing import Any

from laser_features.spec import FeatureSpec


def tiny_content(
    max_length: int = 3,
    rows: int = 10,
    width: int = 4,
    tables: dict[str, dict[str, Any]] | None = None,
    **sections: dict[str, Any],
) -> dict[str, Any]:
    """The content of a spec with items as events and a click as the label.

    Use it in tests that need any valid spec, or one with few sections of its own.

    Args:
        max_length: L, the history's length.
        rows: Rows of the item table.
        width: Width of the item table.
        tables: Further tables.
        **sections: Further sections (``item``, ``context``, ...), or ``event`` and ``label``
            in place of those of the tiny spec.

    Example:
        >>> sorted(tiny_content(item={"author": {"type": "int64", "table": "item"}}))
        ['event', 'history', 'item', 'label', 'name', 'tables']
    """
    return {
        "name": "tiny",
        "history": {"max_length": max_length},
        "tables": {"item": {"rows": rows, "width": width, "ids": "direct"}, **(tables or {})},
        "event": {"item_id": {"type": "int64", "table": "item"}},
        "label": {"click": {"type": "int8"}},
        **sections,
    }


def tiny_spec(**options: Any) -> FeatureSpec:
    """The spec of ``tiny_content`` with the same arguments.

    Example:
        >>> [each.name for each in tiny_spec().model_inputs()]
        ['history_item_id', 'history_age_seconds', 'history_length', 'candidate_item_id']
    """
    return FeatureSpec.from_dict(tiny_content(**options))
