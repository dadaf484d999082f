"""A trace of training steps holds the steps, and TensorBoard's profiler finds it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tfx_pipeline.errors import PipelineError
from tfx_pipeline.profile_training import profile_training


def test_the_trace_holds_the_steps(plain_spec, model_settings, settings, write_files, tmp_path):
    for split in ("train", "eval"):
        folder = tmp_path / "examples" / f"Split-{split}"
        folder.mkdir(parents=True)
        write_files(folder, plain_spec, files=1, requests=16 * 5)
    config = SimpleNamespace(
        model=model_settings, training=settings, dataset=tmp_path, negative_rate=1.0,
        warm_start="", load_spec=lambda: plain_spec,
    )  # fmt: skip
    folders = {"examples": tmp_path / "examples", "transform": tmp_path / "transform"}
    assert profile_training(config, tmp_path / "trace", 2, **folders) > 0
    (path,) = (tmp_path / "trace" / "plugins" / "profile").glob("*/*.xplane.pb")
    planes = xplane_pb2.XSpace.FromString(path.read_bytes()).planes
    names = {each.name for plane in planes for each in plane.event_metadata.values()}
    assert any(name.startswith("train") for name in names)
    assert any("MatMul" in name for name in names)
    few = replace(settings, batch_size=80)
    with pytest.raises(PipelineError, match="at most 3 batches of 80 requests"):
        profile_training(SimpleNamespace(**{**vars(config), "training": few}),
                         tmp_path / "none", 2, **folders)  # fmt: skip
