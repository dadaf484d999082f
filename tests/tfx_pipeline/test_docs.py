"""The commands of docs/pipeline.md run, in the order in which they stand there."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from tfx_pipeline.cli import main
from tfx_pipeline.settings.pipeline_settings import PipelineSettings
from tfx_pipeline.settings.reference import markdown_table
from tfx_pipeline.settings.section import check

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
CONFIG = """
name: laser
min_auc: 0.0
model: {dim: 16, mixer_dim: 16, num_tokens: 8, encoder: {num_recent_segments: 2}}
training: {batch_size: 64}
"""


@pytest.mark.timeout(900)
def test_the_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)
    (block,) = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "laser-pipeline"
        assert main(arguments) == 0, line
    assert "11/11] Pusher" in capsys.readouterr().out
    assert yaml.safe_load(Path("laser.yaml").read_text())["root"]["dag"]["tasks"]
    written = DOCUMENT.partition("| setting | type |")[0]  # the settings' table names no files
    for path in re.findall(r"^\| `([\w./]+?)(?:/<[^`]*|/)?` \|", written, re.MULTILINE):
        assert Path("work", path).exists(), path


def test_the_config_shown_has_every_entry():
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    shown = yaml.safe_load(block)
    assert set(shown) == {field.name for field in fields(PipelineSettings)}
    check(PipelineSettings, shown, "docs/pipeline.md")


def test_the_table_of_settings_is_the_settings():
    """Where this fails, put what ``markdown_table`` returns in place of the table."""
    assert markdown_table() in DOCUMENT


def test_files_that_are_named_exist():
    for path in re.findall(r"`(tfx_pipeline/[\w./]+)`", DOCUMENT):
        assert (ROOT / path).exists(), path
