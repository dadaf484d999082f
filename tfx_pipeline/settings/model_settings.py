"""Section ``model``: the ranker and its sizes."""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from tfx_pipeline.settings.section import CONFIG, Integer, Real


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ModelSettings:
    """Sizes of the ranker; the paper gives d = 128, w = 10 and M = 2.

    Raises:
        ValueError: A size does not fit, or two of them do not fit together.

    Example:
        >>> ModelSettings(dim=32).segment_size
        10
    """

    dim: Integer = Field(default=128, ge=1, description="width d of the encoder's tokens")
    segment_size: Integer = Field(default=10, ge=1, description="events per segment, w")
    num_layers: Integer = Field(default=2, ge=0, description="GSTA layers, M")
    num_recent_segments: Integer = Field(
        default=5, ge=1, description="newest segments that reach the mixer unmerged, R"
    )
    num_tokens: Integer = Field(
        default=16, ge=1, description="RankMixer's tokens; divides mixer_dim"
    )
    mixer_dim: Integer = Field(default=128, ge=1, description="width of RankMixer's tokens")
    mixer_blocks: Integer = Field(default=2, ge=1, description="RankMixer's blocks")
    dropout: Real = Field(default=0.0, ge=0, lt=1, description="dropout rate inside the ranker")

    @model_validator(mode="after")
    def _sizes_fit_together(self) -> Self:
        if self.mixer_dim % self.num_tokens:
            raise ValueError(
                f"mixer_dim is {self.mixer_dim}; should be a multiple of num_tokens "
                f"({self.num_tokens})"
            )
        if self.num_tokens <= self.num_recent_segments + 2:
            raise ValueError(
                f"num_tokens is {self.num_tokens}; should be above num_recent_segments + 2 "
                f"({self.num_recent_segments + 2}), the encoder's tokens"
            )
        return self
