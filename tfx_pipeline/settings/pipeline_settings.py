"""The whole YAML file: splits, gates and bounds of a run, with the sections of the trainer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic.functional_serializers import PlainSerializer
from typing_extensions import Self

from components.seqvault_example_gen.time_range import TimeRange
from tfx_pipeline.cluster.local_cluster import LocalCluster
from tfx_pipeline.settings.kubeflow_settings import KubeflowSettings
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.recall_settings import RecallSettings
from tfx_pipeline.settings.section import CONFIG, Integer, Real, empty_is_default
from tfx_pipeline.settings.training_settings import TrainingSettings, check_negative_rate

LOCAL_BEAM_ARGS = (
    "--runner=FnApiRunner",
    "--direct_running_mode=in_memory",
    "--direct_num_workers=1",
    # Never used here; without a place where workers find their code TFX packs its own sources
    # into an archive in a temporary folder, again for every component, and leaves it there.
    "--sdk_container_image=local",
)
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_TIME = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
_EXAMPLE = "{start: 2022-04-25T00:00:00+08:00, end: 2022-05-05T00:00:00+08:00}"


def _time_range(value: object) -> TimeRange:
    if isinstance(value, TimeRange):
        return value
    if not isinstance(value, Mapping) or set(value) != {"start", "end"}:
        raise ValueError(f"splits are time ranges like `train: {_EXAMPLE}`")
    try:
        return TimeRange.parse(value["start"], value["end"])
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"splits are time ranges like `train: {_EXAMPLE}` ({error})") from error


Split = Annotated[
    TimeRange,
    BeforeValidator(_time_range),
    PlainSerializer(lambda split: {"start": split.start, "end": split.end}),
    WithJsonSchema(
        {
            "type": "object",
            "properties": {"start": _TIME, "end": _TIME},
            "required": ["start", "end"],
            "additionalProperties": False,
        }
    ),
]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class PipelineSettings:
    """Every entry that a config file may hold.

    Raises:
        ValueError: An entry is unknown, missing or does not fit.
    """

    name: str = Field(
        json_schema_extra={"pattern": _NAME},
        description="of the pipeline and of the served model: letters, digits, `.`, `_` and `-`",
    )
    splits: dict[str, Split] = Field(
        default_factory=dict,
        description="time ranges `train` and `eval`; without them those of the dataset's adapter",
    )
    model: Annotated[ModelSettings, BeforeValidator(empty_is_default)] = Field(
        default=ModelSettings(), description="the ranker"
    )
    training: Annotated[TrainingSettings, BeforeValidator(empty_is_default)] = Field(
        default=TrainingSettings(), description="epochs, batches and optimisers"
    )
    recall: Annotated[RecallSettings, BeforeValidator(empty_is_default)] = Field(
        default=RecallSettings(), description="the model that finds candidates"
    )
    slices: tuple[str, ...] | None = Field(
        default=None,
        description="context fields to slice the evaluation by; without it `scenario`, if there "
        "is one; history length is always one",
    )
    min_auc: Real = Field(default=0.5, ge=0, lt=1, description="a model is blessed only above it")
    max_auc_drop: Real = Field(
        default=0.01, ge=0, le=1, description="how far AUC may lie below the last blessed model's"
    )
    max_bad_fraction: Real = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of malformed impressions above which a run fails",
    )
    max_outside_fraction: Real = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of an input's ids outside its `direct` table above which a run fails; "
        "such ids count as missing",
    )
    allow_anomalies: tuple[str, ...] = Field(
        default=(),
        description="features of the Examples whose anomalies (StatisticsGen and "
        "ExampleValidator) do not end the run",
    )
    negative_rate: Real = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the train split's impressions without a click that is kept; the "
        "served probability is corrected for it",
    )
    rows_per_file: Integer = Field(
        default=16384,
        ge=1,
        description="impressions per Examples file, about: the unit of parallel work",
    )
    checked_requests: Integer = Field(
        default=64, ge=1, le=100_000, description="requests that the serving check sends"
    )
    model_server: tuple[str, ...] = Field(
        default=(),
        description="command of a model server for the serving check, TensorFlow Serving's flags "
        "are appended: `[tensorflow_model_server]`; empty takes the embedded one",
    )
    push_to: str = Field(
        default="",
        description="folder or URI (`s3://`, `gs://`, `hdfs://`) that gets a folder per version of "
        "the model; empty takes `serving/<name>` of the work folder",
    )
    cluster: str = Field(
        default="",
        description="roles on this machine that the Trainer runs over, such as "
        "`local:ps=2,workers=2`; empty trains in one process",
    )
    baseline_model: str = Field(
        default="",
        description="folder of the model to compare with where no ML Metadata of past runs is "
        "(Kubeflow)",
    )
    warm_start: str = Field(
        default="",
        description="`checkpoints` of a training that ended: this one begins with its tables, "
        "weights and optimiser state; empty begins anew. `run --span` finds it by itself",
    )
    kubeflow: Annotated[KubeflowSettings, BeforeValidator(empty_is_default)] = Field(
        default=KubeflowSettings(), description="pods of a compiled pipeline"
    )
    beam_args: tuple[str, ...] = Field(
        default=LOCAL_BEAM_ARGS, description="Beam's pipeline arguments: another runner goes here"
    )

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.match(_NAME, name):
            raise ValueError(
                "should be a name of at most 100 letters, digits, `.`, `_` and `-`, not a path"
            )
        return name

    @field_validator("cluster")
    @classmethod
    def _is_a_cluster(cls, cluster: str) -> str:
        if cluster:
            LocalCluster.parse(cluster)
        return cluster

    @field_validator("splits", mode="before")
    @classmethod
    def _no_splits(cls, value: Any) -> Any:
        return empty_is_default(value)

    @field_validator("splits")
    @classmethod
    def _splits_fit(cls, splits: dict[str, TimeRange]) -> dict[str, TimeRange]:
        if splits and not {"train", "eval"} <= set(splits):
            raise ValueError("should hold train and eval, each with start and end")
        names = list(splits)
        for position, name in enumerate(names):
            for other in names[position + 1 :]:
                if splits[name].overlaps(splits[other]):
                    raise ValueError(
                        f"{name} ({splits[name]}) and {other} ({splits[other]}) overlap: "
                        "evaluation would see what was trained on"
                    )
        return splits

    @field_validator("beam_args")
    @classmethod
    def _flags(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        for argument in arguments:
            if not argument.startswith("--"):
                raise ValueError(f"holds {argument!r}; should hold arguments like --name=value")
        return arguments

    @model_validator(mode="after")
    def _negatives_of_one_label(self) -> Self:
        check_negative_rate(self.training, self.negative_rate)
        return self
