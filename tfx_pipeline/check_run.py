"""All that can be known to be wrong with a run before it starts."""

from __future__ import annotations

from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.plan import check_splits


def check_run(config: PipelineConfig) -> None:
    """Raise unless dataset and store are there and fit the settings; takes a few seconds.

    Raises:
        PipelineError: One line with what is wrong and what to do.
        FeatureSpecError: The dataset's feature spec is not valid.
    """
    config.check_inputs()
    spec = config.load_spec()
    for name in config.slices or ():
        if name not in spec.context_fields:
            raise PipelineError(
                f"config {config.name!r} slices by {name!r}, which is no context field of feature "
                f"spec {spec.name!r}; it has {sorted(spec.context_fields)}"
            )
    check_splits(config)
    # Imported here: TensorFlow takes seconds, and whatever is wrong above is said at once.
    from tfx_pipeline.training.tower import check_model

    check_model(spec, config.model)
