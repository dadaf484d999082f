"""Section ``model``: the ranker, its parts and their sizes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from tfx_pipeline.settings.section import CONFIG, Integer, Real, empty_is_default

Options = Annotated[dict[str, Any], BeforeValidator(empty_is_default)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ModelSettings:
    """A ranker of any system that ``laser_keras`` knows; the paper gives d = 128.

    What only Keras can tell (whether a system has an option, and whether it fits) is checked by
    ``tfx_pipeline.training.tower.check_model``, which every command calls before it starts work.

    Raises:
        ValueError: A setting does not fit, or two of them do not fit together.

    Example:
        >>> ModelSettings(system="din", dim=32).recency
        'add'
    """

    system: str = Field(
        default="laser",
        description="sequence encoder by name: `laser`, `din`, `twin`, `hstu`, ... "
        "(`laser_keras.SYSTEMS`)",
    )
    encoder: Options = Field(
        default_factory=dict,
        description="options of that encoder by name, for instance "
        "`{segment_size: 10, num_recent_segments: 5}` of `laser`; of every encoder "
        "`kernel_initializer`, `bias_initializer` and the `..._regularizer`s as of "
        "`keras.layers.Dense`",
    )
    beside: str | None = Field(
        default=None,
        description="a second system whose tokens join the encoder's, such as a two-stage search "
        "over a longer history (`twin`, `sim_soft`, `sim_hard`)",
    )
    beside_encoder: Options = Field(
        default_factory=dict, description="options of the encoder of `beside`"
    )
    recent_events: Integer | None = Field(
        default=None,
        ge=1,
        description="newest events that the encoder gets while the one `beside` it gets all; "
        "without it both get all",
    )
    interactions: tuple[Literal["similarity", "category_match", "cross"], ...] | None = Field(
        default=None,
        description="which of the feature spec's interactions of candidate and history the encoder "
        "takes; without it all that it has a use for",
    )
    dim: Integer = Field(default=128, ge=1, description="width d of the encoder's tokens")
    recency: Literal["add", "concat", "none"] = Field(
        default="add", description="how an event's age enters its token"
    )
    recency_options: Options = Field(
        default_factory=dict,
        description="options of `RecencyEmbedding`: `num_buckets`, `buckets_per_doubling`",
    )
    mixer: Literal["rankmixer", "mlp"] = Field(
        default="rankmixer", description="what lets all features interact"
    )
    num_tokens: Integer = Field(
        default=16, ge=2, description="RankMixer's tokens; divides mixer_dim"
    )
    mixer_dim: Integer = Field(
        default=128, ge=1, description="width of RankMixer's tokens, or of the MLP's layers"
    )
    mixer_blocks: Integer = Field(
        default=2, ge=1, description="RankMixer's blocks, or the MLP's layers"
    )
    mixer_expansion: Integer = Field(
        default=4, ge=1, description="hidden width of RankMixer's networks per token width"
    )
    mixer_options: Options = Field(
        default_factory=dict,
        description="further options of the mixer: RankMixer's `norm`, `num_experts` (sparse "
        "mixture with ReLU routing), `active_budget`, ... or the MLP's `activation`",
    )
    dropout: Real = Field(default=0.0, ge=0, lt=1, description="dropout rate inside the ranker")

    @model_validator(mode="after")
    def _sizes_fit_together(self) -> Self:
        if self.mixer == "rankmixer" and self.mixer_dim % self.num_tokens:
            raise ValueError(
                f"mixer_dim is {self.mixer_dim}; should be a multiple of num_tokens "
                f"({self.num_tokens})"
            )
        if self.interactions and len(set(self.interactions)) < len(self.interactions):
            raise ValueError(f"interactions is {list(self.interactions)}; should name each once")
        if "active_budget" in self.mixer_options and not self.mixer_options.get("num_experts"):
            raise ValueError(
                "mixer_options holds active_budget, the share of experts that stays active, and "
                "no experts; give num_experts there, too"
            )
        if self.beside_encoder and self.beside is None:
            raise ValueError("beside_encoder is given without beside; name its system there")
        if self.recent_events is not None and self.beside is None:
            raise ValueError(
                "recent_events is given without beside, which is to get all events; a system "
                "alone gets as many as its histories are long"
            )
        return self
