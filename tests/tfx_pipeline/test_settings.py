"""The settings: what is accepted, what is refused in one line, and what is made of them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tfx_pipeline.errors import SettingsError
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.pipeline_settings import PipelineSettings
from tfx_pipeline.settings.read_yaml import read_yaml
from tfx_pipeline.settings.reference import json_schema, markdown_table, plain_list
from tfx_pipeline.settings.section import check, plain

NUMBERS = [
    "min_auc", "max_auc_drop", "max_bad_fraction", "rows_per_file", "checked_requests",
    "model.dim", "model.mixer_blocks", "model.dropout", "training.epochs", "training.batch_size",
    "training.dense_learning_rate", "training.final_rate", "training.seed",
]  # fmt: skip
NO_NUMBERS = [".nan", ".inf", "-.inf", "-1", "yes", "abc", "1k", "[1]", "{a: 1}", "2022-04-25"]


@pytest.fixture
def read(tmp_path):
    def read_text(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return check(PipelineSettings, read_yaml(path), "config.yaml")

    return read_text


def entry(name, value):
    *section, last = name.split(".")
    return (
        f"name: mine\n{section[0]}: {{{last}: {value}}}"
        if section
        else f"name: mine\n{last}: {value}"
    )


@pytest.fixture
def refused(read):
    def line(text):
        with pytest.raises(SettingsError) as caught:
            read(text)
        message = str(caught.value)
        assert "\n" not in message and "config.yaml" in message
        return message

    return line


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_in_range_is_refused(refused, name, value):
    assert name in refused(entry(name, value))


@pytest.mark.parametrize("value", ["1e-3", "1E-3", "0.001", "1.0e-3", '"1e-3"'])
def test_numbers_are_read_as_a_person_writes_them(read, value):
    assert read(entry("training.dense_learning_rate", value)).training.dense_learning_rate == 0.001
    assert read("name: a\nmin_auc: '0.6'\ntraining: {epochs: 3.0}").training.epochs == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the entry 'name' is missing"),
        ("name: ../../x", "not a path"),
        (
            "name: a\nnegative_rate: 0.5\ntraining: {labels: {click: {}, like: {}}}",
            "corrected for in that label's predictions alone",
        ),
        ("name: /etc/passwd", "not a path"),
        ("name: ''", "should be a name"),
        ("name: .", "should be a name"),
        ("name: a b", "should be a name"),
        (f"name: {'a' * 101}", "at most 100"),
        ("name: 5", "name is 5; should be text"),
        ("name: yes", "name is True; should be text"),
        ("name: a\nname: b", "the entry 'name' is given twice"),
        ("name: a\ntraining:\n  epochs: 1\n  epochs: 2", "the entry 'epochs' is given twice"),
        ("name: a\nmin_acu: 0.5", "did you mean 'min_auc'?"),
        ("name: a\ntraining: {dim: 32}", "it belongs to section 'model'"),
        ("name: a\nmodel: {epochs: 2}", "it belongs to section 'training'"),
        ("name: a\ntraining: 5", "training is 5; should hold entries like"),
        ("name: a\ntraining: [1]", "should hold entries like"),
        ("name: a\nbeam_args: --runner=FlinkRunner", "should be a list"),
        ("name: a\nbeam_args: [runner=FlinkRunner]", "arguments like --name=value"),
        ("name: a\nslices: scenario", "should be a list"),
        ("name: a\nslices: [1]", "slices.0 is 1; should be text"),
        ("name: a\nmodel_server: tensorflow_model_server", "should be a list"),
        ("name: a\nbaseline_model: 7", "should be text"),
        ("name: a\nmin_auc: 60", "less than 1"),
        ("name: a\nmin_auc:", "min_auc is None; should be a number"),
        ("name: a\nchecked_requests: 0", "greater than or equal to 1"),
        ("name: a\nrows_per_file: 2.5", "should be a whole number"),
        ("name: a\nmodel: {mixer_dim: 33}", "multiple of num_tokens (16)"),
        ("name: a\nmodel: {beside_encoder: {top_k: 3}}", "without beside"),
        ("name: a\nmodel: {encoder: 3}", "should hold entries like"),
        ("name: a\nmodel: {recency: ad}", "'add', 'concat' or 'none'"),
        ("name: a\nmodel: {interactions: [sim]}", "'similarity', 'category_match' or 'cross'"),
        ("name: a\ntraining: {seed: 2147483648}", "less than 2147483648"),
        ("name: a\nkubeflow: {resources: {Trainer: {memory_limit: 4X}}}", "memory like 500M, 4G"),
        ("name: a\nkubeflow: {resources: {Trainer: {memory_request: 0G}}}", "memory like 500M"),
        ("name: a\nkubeflow: {resources: {Trainer: {gpus: -1}}}", "greater than or equal to 0"),
        ("name: a\nkubeflow: {resources: {Trainer: {cpu: 2}}}", "unknown entry"),
        ("name: a\nkubeflow: {retries: 50}", "less than or equal to 20"),
        ("name: a\nkubeflow: {env: {A-B: x}}", "'A-B', which is no name of an environment"),
        ("name: a\nkubeflow: {env: {A: 1}}", "should be text"),
        ("name: a\nkubeflow: {secrets: {A: {secret: s}}}", "the entry 'kubeflow.secrets.A.key' is"),
        ("name: a\nkubeflow: {volumes: {claim: work}}", "give an absolute path"),
        ("name: a\nkubeflow: {workers: 0}", "greater than or equal to 1"),
        ("name: a\npush_to: 5", "push_to is 5; should be text"),
        ("name: a\nsplits: {train: 5, eval: 6}", "splits are time ranges like"),
        ("name: a\nsplits: [1]", "should hold entries like"),
        ("name: a\nsplits: {train: {start: yes, end: no}, eval: 6}", "splits are time ranges"),
        (
            "name: a\nsplits: {train: {start: 2022-04-01, end: 2022-04-05}, "
            "eval: {start: 2022-04-04, end: 2022-04-06}}",
            "overlap",
        ),
        ("- a", "must hold entries like"),
        ("name: [", "is not valid YAML"),
        ("name: a\nmodel: {dims: 1}\nmin_auc: 7", "unknown entry 'model.dims'"),
        ("name: a\nmodel: {dims: 1}\nmin_auc: 7", "min_auc is 7"),
    ],
)  # fmt: skip
def test_each_mistake_is_named_in_one_line(refused, text, expected):
    assert expected in refused(text)


def test_a_section_left_empty_takes_the_defaults(read):
    assert read("name: a\ntraining:\nmodel:\nsplits:").model == ModelSettings()


def test_settings_survive_the_way_through_json():
    settings = check(
        PipelineSettings,
        {
            "name": "a",
            "splits": {
                "train": {"start": "2022-04-25T00:00:00+08:00", "end": "2022-05-05"},
                "eval": {"start": "2022-05-05", "end": "2022-05-06"},
            },
            "model": {"dim": 32},
        },
        "here",
    )
    assert check(PipelineSettings, plain(settings), "there") == settings
    with pytest.raises(ValueError, match="multiple of num_tokens"):
        replace(settings.model, mixer_dim=33)


def test_table_list_and_schema_hold_every_setting():
    names = re.findall(r"^\| `([\w.]+)`", markdown_table(), re.MULTILINE)
    assert len(names) == len(set(names)) > 25
    assert {"name", "model.dim", "training.epochs"} <= set(names)
    assert all(f"{name}  (" in plain_list() for name in names)
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert all("description" in entry for entry in schema["properties"].values())
    assert schema["$defs"]["TrainingSettings"]["properties"]["epochs"]["minimum"] == 1
