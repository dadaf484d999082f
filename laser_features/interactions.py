"""Interactions of a candidate with the events of a history, as a feature spec declares them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interactions:
    """Inputs that the model computes itself, so that they are neither stored nor sent.

    Attributes:
        similarity: Content fields; the cosine of candidate's and event's vectors is one score each.
        category: Item field whose equality marks the events of the candidate's category, or None.
        cross: Event fields that describe the interaction of user and item (TWIN's cross features).

    Example:
        >>> Interactions(similarity=("image",)).to_dict()
        {'similarity': ['image']}
    """

    similarity: tuple[str, ...] = ()
    category: str | None = None
    cross: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The section ``interactions`` of a feature spec; empty if nothing is declared."""
        entry: dict[str, object] = {}
        if self.similarity:
            entry["similarity"] = list(self.similarity)
        if self.category is not None:
            entry["category"] = self.category
        if self.cross:
            entry["cross"] = list(self.cross)
        return entry
