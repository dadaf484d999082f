"""Dataset adapters: from published files to the prepared dataset that the pipeline reads."""

from tfx_pipeline.datasets.generator_settings import GeneratorSettings
from tfx_pipeline.datasets.prepare import prepare
from tfx_pipeline.datasets.prepared_dataset import PreparedDataset
from tfx_pipeline.errors import DatasetError

__all__ = ["DatasetError", "GeneratorSettings", "PreparedDataset", "prepare"]
