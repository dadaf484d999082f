"""The TFX component: impressions and a SeqVault in, Examples by time range out."""

from __future__ import annotations

from google.protobuf import any_pb2, struct_pb2
from tfx.components.example_gen.component import FileBasedExampleGen
from tfx.dsl.components.base import executor_spec
from tfx.proto import example_gen_pb2

from components.seqvault_example_gen.executor import SeqVaultExampleGenExecutor
from components.seqvault_example_gen.settings import Settings


class SeqVaultExampleGen(FileBasedExampleGen):
    """Joins impressions with the histories of a SeqVault, strictly before each request's time.

    One Example holds one request: the history once, its candidates, their labels. The driver of
    ``FileBasedExampleGen`` fingerprints ``impressions.parquet``; what else the Examples depend on
    is in ``settings.fingerprint``. The Examples artifact carries what was counted as custom
    properties (``count_impressions``, ``count_unknown_users``, ...).

    Args:
        dataset: Folder of a prepared dataset.
        settings: Feature spec, store, splits and bounds.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(SeqVaultExampleGenExecutor)

    def __init__(self, dataset: str, settings: Settings) -> None:
        content = struct_pb2.Struct()
        # As text: a Struct's own numbers are doubles.
        content.update({"settings": settings.to_json()})
        packed = any_pb2.Any()
        packed.Pack(content)
        splits = [example_gen_pb2.SplitConfig.Split(name=name) for name in settings.splits]
        super().__init__(
            input_base=dataset,
            input_config=example_gen_pb2.Input(
                splits=[
                    example_gen_pb2.Input.Split(name="impressions", pattern="impressions.parquet")
                ]
            ),
            output_config=example_gen_pb2.Output(
                split_config=example_gen_pb2.SplitConfig(splits=splits)
            ),
            custom_config=example_gen_pb2.CustomConfig(custom_config=packed),
        )
