"""Section ``training``: the run over the data, and its optimisers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from tfx_pipeline.feature_host.address import parse_address
from tfx_pipeline.settings.section import CONFIG, Integer, Real, empty_is_default


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class LabelSettings:
    """How one of several labels is trained on."""

    weight: Real = Field(default=1.0, gt=0, description="of its loss in the sum of all")
    kind: Literal["binary", "regression"] = Field(
        default="binary", description="cross entropy of 0 and 1, or squared error of a number"
    )
    weighted_by: str | None = Field(
        default=None, description="label whose value weighs the loss of each impression"
    )


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class OpenTableSettings:
    """When an id that nobody listed gets a row of a table, and when it loses it."""

    sightings: Integer = Field(default=1, ge=1, description="steps that must have met the id")
    days: Integer = Field(
        default=0, ge=0, description="of the log without the id, after which it loses its row"
    )


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainingSettings:
    """Batches, epochs, optimisers and checkpoints.

    The paper gives Adagrad for the tables and Adam(0.9, 0.9999) for the rest; it gives no learning
    rates, regularisation or number of epochs.

    Raises:
        ValueError: A setting is unknown or does not fit.

    Example:
        >>> TrainingSettings(epochs=2).batch_size
        128
    """

    labels: Annotated[
        dict[str, Annotated[LabelSettings, BeforeValidator(empty_is_default)]],
        BeforeValidator(empty_is_default),
    ] = Field(
        default_factory=dict,
        description="labels with a head each over the shared parts, by name: `weight`, `kind` "
        "(`binary`, `regression`), `weighted_by`; without it the first one alone",
    )
    open_tables: Annotated[
        dict[str, Annotated[OpenTableSettings, BeforeValidator(empty_is_default)]],
        BeforeValidator(empty_is_default),
    ] = Field(
        default_factory=dict,
        description="tables with `ids: vocabulary` whose ids get rows as training meets them, by "
        "name: `sightings` (steps that met the id before it gets a row, 1) and `days` (of the log "
        "without the id, after which it loses it; 0: never)",
    )
    admit_files: Integer = Field(
        default=1,
        ge=1,
        description="training files between two admissions to the open tables; workers wait for "
        "one another there",
    )
    batch_size: Integer = Field(default=128, ge=1, description="requests per step")
    epochs: Integer = Field(default=1, ge=1, description="passes over the training files")
    micro_batches: Integer = Field(
        default=1,
        ge=1,
        description="parts of a batch whose gradients are added up before the one step: each takes "
        "so much less memory",
    )
    devices: Integer = Field(
        default=1,
        ge=0,
        description="GPUs of this machine (CPUs where it has none) that share a batch; 0 takes all "
        "GPUs",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of the ranker's computations while training; weights, tables, optimisers and "
        "the exported model are float32",
    )
    xla: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="compile the ranker's step with XLA; `auto` does so on GPUs alone (on CPUs it "
        "takes several times as long)",
    )
    dense_learning_rate: Real = Field(
        default=2e-3, gt=0, description="Adam's, for the dense weights"
    )
    table_learning_rate: Real = Field(default=0.05, gt=0, description="Adagrad's, for the tables")
    table_initial_accumulator: Real = Field(
        default=1e-3, gt=0, description="Adagrad's first sum of squared gradients"
    )
    table_init_scale: Real = Field(
        default=0.05, ge=0, description="initial embeddings are uniform within plus and minus this"
    )
    final_rate: Real = Field(
        default=0.1,
        ge=0,
        le=1,
        description="both learning rates fall, file by file, to this fraction; 1 keeps them",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear",
        description="how the learning rates fall to final_rate; constant keeps them",
    )
    warmup_steps: Integer = Field(
        default=0, ge=0, description="steps over which both learning rates first rise from zero"
    )
    beta_1: Real = Field(default=0.9, ge=0, lt=1, description="Adam's decay of the mean gradient")
    beta_2: Real = Field(
        default=0.9999, ge=0, lt=1, description="Adam's decay of the mean squared gradient"
    )
    clip_norm: Real = Field(
        default=0.0,
        ge=0,
        description="largest global norm of a step's gradients, tables and dense; 0 clips nothing",
    )
    table_l2: Real = Field(
        default=0.0,
        ge=0,
        description="L2 penalty on the table rows that a step touches, per row and step",
    )
    weight_decay: Real = Field(
        default=0.0,
        ge=0,
        description="decoupled decay of the dense weights per unit of learning rate",
    )
    calibration: Literal["none", "platt", "isotonic"] = Field(
        default="none",
        description="fitted to the eval split and exported with the model; metrics of that same "
        "split flatter it then",
    )
    seed: Integer = Field(
        default=17,
        ge=0,
        lt=2**31,
        description="of initial values, the order of the data and dropout",
    )
    shuffle_buffer: Integer = Field(
        default=8192, ge=1, description="requests among which a file's order is shuffled"
    )
    max_damaged_files: Integer = Field(
        default=0,
        ge=0,
        description="files of Examples that may be cut short or have a wrong checksum: the rest of "
        "such a file is left out, with a line; one more ends the run",
    )
    checkpoint_files: Integer = Field(
        default=64,
        ge=1,
        description="training files between two checkpoints within an epoch; the end of an epoch "
        "always has one",
    )
    transmission: Literal["none", "bf16", "zstd", "bf16+zstd"] = Field(
        default="none",
        description="how table rows and their gradients travel between parameter servers and "
        "workers: as they are, or rounded to bfloat16 in half the bytes; with `zstd` packed with a "
        "checksum, without further loss, by ops that `laser-pipeline build-ops` builds",
    )
    feature_hosts: tuple[str, ...] = Field(
        default=(),
        description="addresses (`host:port`) of `laser-pipeline feature-host`, of which any serves "
        "any shard: training reads from them in place of files of Examples",
    )
    keep_checkpoints: Integer = Field(default=2, ge=1, description="newest checkpoints kept")
    evaluate_steps: Integer = Field(
        default=0,
        ge=0,
        description="steps between two evaluations while training, to the next whole file; 0 "
        "evaluates at the end alone. The best checkpoint is kept and exported",
    )
    evaluate_files: Integer = Field(
        default=0, ge=0, description="eval files that such an evaluation reads; 0 reads all"
    )
    patience: Integer = Field(
        default=0,
        ge=0,
        description="evaluations in a row without a higher AUC after which training ends; 0 "
        "never ends it early",
    )

    @field_validator("feature_hosts")
    @classmethod
    def _are_addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            parse_address(address)
        return addresses

    @model_validator(mode="after")
    def _open_tables_need_times(self) -> Self:
        if self.open_tables and self.feature_hosts:
            raise ValueError(
                f"open_tables names {sorted(self.open_tables)}, and feature_hosts send no times of "
                "requests, by which ids lose their rows: train on Examples, or without open tables"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit_the_batch(self) -> Self:
        parts = self.micro_batches * max(1, self.devices)
        if parts > self.batch_size:
            raise ValueError(
                f"a batch of {self.batch_size} requests has no {parts} parts (micro_batches times "
                "devices): make them fewer, or batch_size larger"
            )
        return self

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> Self:
        if self.patience and not self.evaluate_steps:
            raise ValueError(
                f"patience is {self.patience} and evaluate_steps 0; without evaluations nothing "
                "can end early: set evaluate_steps"
            )
        return self


def check_negative_rate(settings: TrainingSettings, negative_rate: float) -> None:
    """Raise if negatives are sampled beside labels whose predictions that would bend.

    Which impressions are kept follows from the first label: its odds rise by one factor, which is
    taken back exactly. How often another label is 1 among those kept depends on how it goes
    together with the first, impression by impression.

    Raises:
        ValueError: ``negative_rate`` is below 1 and there are several labels.
    """
    if negative_rate < 1 and len(settings.labels) > 1:
        raise ValueError(
            f"negative_rate is {negative_rate} and training.labels holds {list(settings.labels)}: "
            "impressions without the first label are left out, which can be corrected for in that "
            "label's predictions alone; set negative_rate to 1, or train on one label"
        )
