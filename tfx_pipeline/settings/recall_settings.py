"""Section ``recall``: the model that finds candidates in the whole catalogue."""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from tfx_pipeline.settings.section import CONFIG, Integer, Real


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class RecallSettings:
    """A two-tower model beside the ranker; without ``k`` there is none.

    Raises:
        ValueError: A setting does not fit, or there are others without ``k``.

    Example:
        >>> RecallSettings(k=100).history
        50
    """

    k: Integer = Field(
        default=0,
        ge=0,
        le=10_000,
        description="items that the recall model answers with; 0: no recall model is trained",
    )
    min_recall: Real = Field(
        default=0.0,
        ge=0,
        le=1,
        description="recall@k of the eval split below which the recall model is not pushed",
    )
    history: Integer = Field(
        default=50, ge=1, description="newest events whose embeddings the user tower averages"
    )
    width: Integer = Field(default=32, ge=1, description="numbers in a user's or an item's vector")
    epochs: Integer = Field(default=5, ge=1, description="passes over the training clicks")
    batch_size: Integer = Field(
        default=512, ge=2, description="clicks per step; each is a negative of all the others"
    )
    learning_rate: Real = Field(default=0.1, gt=0, description="Adagrad's, for towers and tables")
    seed: Integer = Field(default=0, ge=0, lt=2**31, description="of weights and order")

    @model_validator(mode="after")
    def _nothing_without_k(self) -> Self:
        defaults = type(self).__pydantic_fields__  # type: ignore[attr-defined]
        given = [name for name, each in defaults.items() if getattr(self, name) != each.default]
        if self.k == 0 and given:
            raise ValueError(
                f"{given[0]} is given without k, and no recall model is trained: say with k how "
                "many items it is to find"
            )
        return self
