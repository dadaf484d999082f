"""The runners of docs/pipeline.md: each option is one that Beam itself knows and reads as meant."""

import re
from pathlib import Path

import pytest
import yaml
from apache_beam.options import pipeline_options
from apache_beam.options.pipeline_options import (
    DirectOptions,
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.runners import create_runner
from apache_beam.runners.portability.flink_runner import FlinkRunner
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.transforms import environments
from tfx.utils.dependency_utils import make_beam_dependency_flags

from tfx_pipeline.settings.pipeline_settings import LOCAL_BEAM_ARGS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "pipeline.md").read_text(encoding="utf-8")
ROWS = {
    name.strip(): yaml.safe_load(args)
    for name, args in re.findall(r"^\| ([^|]+) \| `(\[--runner.*?\])` \|$", DOCUMENT, re.MULTILINE)
}


def known_options() -> set[str]:
    kinds = [PipelineOptions]
    names = set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        parser = pipeline_options._BeamArgumentParser(add_help=False)
        if "_add_argparse_args" in vars(kind):
            kind._add_argparse_args(parser)
        names |= {option for action in parser._actions for option in action.option_strings}
    return names


def test_the_rows_are_found():
    assert list(ROWS) == ["several processes here", "worker pools", "Flink", "Dataflow"]


@pytest.mark.parametrize("args", [*ROWS.values(), list(LOCAL_BEAM_ARGS)], ids=[*ROWS, "default"])
def test_beam_knows_every_option_and_tfx_packs_nothing_of_its_own(args):
    known = known_options()
    assert "--flink_master" in known and "--flink_mastre" not in known
    assert [each for each in args if each.split("=")[0] not in known] == []
    assert make_beam_dependency_flags(list(args)) == list(args)


def test_several_processes_are_read_as_meant():
    direct = PipelineOptions(ROWS["several processes here"]).view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("multi_processing", 8)


def test_worker_pools_are_asked_where_the_row_says():
    options = PipelineOptions(ROWS["worker pools"])
    assert type(create_runner(options.view_as(StandardOptions).runner)) is PortableRunner
    portable = options.view_as(PortableOptions)
    assert portable.job_endpoint == "embed"
    made = environments.ExternalEnvironment.from_options(portable)
    assert made.url == "localhost:50000"


def test_flink_runs_the_image_on_the_master_that_the_row_names():
    options = PipelineOptions(ROWS["Flink"])
    assert type(create_runner(options.view_as(StandardOptions).runner)) is FlinkRunner
    flink = options.view_as(FlinkRunnerOptions)
    assert (flink.flink_master, flink.parallelism) == ("flink:8081", 64)
    portable = options.view_as(PortableOptions)
    assert portable.environment_type == "DOCKER"
    assert (portable.lookup_environment_option("docker_container_image")
            or portable.environment_config) == "IMAGE"  # fmt: skip


def test_dataflow_gets_project_region_folder_and_image():
    options = PipelineOptions(ROWS["Dataflow"])
    cloud = options.view_as(GoogleCloudOptions)
    assert (cloud.project, cloud.region) == ("P", "R")
    assert cloud.temp_location == "gs://BUCKET/tmp"
    assert options.view_as(WorkerOptions).sdk_container_image == "IMAGE"
    assert options.view_as(StandardOptions).runner == "DataflowRunner"
