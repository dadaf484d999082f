"""Checks of a run that are possible before it starts."""

from __future__ import annotations

import pyarrow.parquet as pq

from laser_features import FeatureSpec
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.plan import check_splits


def check_run(config: PipelineConfig) -> None:
    """Raise unless dataset and store exist and fit the settings; takes a few seconds.

    Raises:
        PipelineError: One line with what is wrong and what to do.
        FeatureSpecError: The dataset's feature spec is not valid.
    """
    config.check_inputs()
    spec = config.load_spec()
    for name in config.slices or ():
        if name not in spec.context_fields:
            raise PipelineError(
                f"config {config.name!r} slices by {name!r}, which is not a context field of "
                f"feature spec {spec.name!r}; it has {sorted(spec.context_fields)}"
            )
    check_splits(config)
    if config.recall.k:
        _check_recall(config)
    # Imported here: TensorFlow takes seconds, and whatever is wrong above is said at once.
    from tfx_pipeline.training.labels import BINARY, columns_of, labels_of
    from tfx_pipeline.training.open_rows import check_open_tables
    from tfx_pipeline.training.tower import check_model

    labels = labels_of(spec, config.training)
    binary = [label.name for label in labels if label.kind == BINARY]
    weights = [label.weighted_by for label in labels if label.weighted_by is not None]
    for name in (labels[0].name, *columns_of(labels)):
        _check_label(config, spec, name, name in binary, name in weights)
    check_open_tables(spec, config.training)
    check_model(spec, config.model)


def _check_recall(config: PipelineConfig) -> None:
    """Raise if the recall model would answer with the whole catalogue."""
    path = config.dataset / "items.parquet"
    try:
        items = pq.read_metadata(path).num_rows
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): prepare it again") from error
    if config.recall.k >= items:
        raise PipelineError(
            f"recall.k is {config.recall.k} and the dataset has {items} items: every answer would "
            "be the whole catalogue; give less"
        )


def _check_label(
    config: PipelineConfig, spec: FeatureSpec, name: str, is_binary: bool, is_weight: bool
) -> None:
    """Raise unless the train split has usable, varying values of a label."""
    path, split = config.dataset / "impressions.parquet", config.splits["train"]
    within = [("timestamp", ">=", split.start), ("timestamp", "<", split.end)]
    try:
        values = pq.read_table(path, columns=[name], filters=within)[name].drop_null().unique()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise PipelineError(f"{path}: label {name!r} cannot be read ({error})") from error
    found = sorted(values.to_pylist())
    if len(found) < 2:
        raise PipelineError(
            f"label {name!r} is {found[0] if found else 'missing'} in all impressions of the train "
            f"split ({split}): there is nothing to learn"
        )
    if is_binary and name != next(iter(spec.labels)) and not set(found) <= {0, 1}:
        raise PipelineError(
            f"label {name!r} holds {found[-1]}; a binary label is 0 or 1: make it `kind: "
            "regression`, or derive another column"
        )
    if is_weight and found[0] < 0:
        raise PipelineError(f"label {name!r} weighs losses and holds {found[0]}; give 0 or more")
