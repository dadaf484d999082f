"""``laser-pipeline train``: which Examples it takes, and what it refuses."""

import pytest

from laser_features import FeatureSpec
from laser_features.testing import tiny_content
from tfx_pipeline import train_alone
from tfx_pipeline.cli import main
from tfx_pipeline.cluster.exit_codes import EXIT_BAD_CLUSTER, EXIT_OTHER_RUN

SPEC = tiny_content()
SPLITS = """
splits:
  train: {start: 1650000000000, end: 1650000001000}
  eval: {start: 1650000001000, end: 1650000002000}
"""


@pytest.fixture
def folders(tmp_path):
    """A dataset's spec, and Examples of both splits."""
    for split in ("train", "eval"):
        folder = tmp_path / "examples" / f"Split-{split}"
        folder.mkdir(parents=True)
        (folder / "data-0.gz").write_bytes(b"12345")
    (tmp_path / "transform").mkdir()
    FeatureSpec.from_dict(SPEC).save(tmp_path / "features.yaml")
    return tmp_path


@pytest.fixture
def jobs(monkeypatch):
    """What reaches the cluster, in place of one."""
    given = []
    monkeypatch.setattr(train_alone, "train_on_local_cluster", lambda *each: given.append(each))
    return given


def run(folders, config="name: laser\n", *more, examples=True):
    (folders / "config.yaml").write_text(SPLITS + config)
    arguments = ["--data", folders, "--work", folders / "work", "--output", folders / "out"]
    arguments += ["--config", folders / "config.yaml", *more]
    if examples:
        arguments += ["--examples", folders / "examples", "--transform", folders / "transform"]
    return main(["train", *map(str, arguments)])


def test_a_cluster_gets_the_examples_and_the_settings(folders, jobs):
    assert run(folders, "name: laser\ntraining: {epochs: 3}\n", "--cluster", "local:x") == 0
    ((description, job, folder),) = jobs
    assert (description, folder) == ("local:x", folders / "out" / "cluster")
    assert job.train_files == [str(folders / "examples" / "Split-train" / "*")]
    assert job.transform_graph_path == str(folders / "transform")
    assert job.serving_model_dir == str(folders / "out" / "model")
    assert job.custom_config["training"]["epochs"] == 3
    assert "cluster" not in job.custom_config


def test_the_configs_cluster_is_used_unless_another_is_given(folders, jobs):
    config = "name: laser\ncluster: local:ps=1,workers=1\n"
    assert run(folders, config) == 0
    assert run(folders, config, "--cluster", "local:ps=2,workers=2") == 0
    assert [job[0] for job in jobs] == ["local:ps=1,workers=1", "local:ps=2,workers=2"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda at: (at / "config.yaml").write_text("name: x\nmodel: {dim: 64}\n"), "model"),
        (
            lambda at: (at / "examples" / "Split-train" / "data-1.gz").write_bytes(b"1"),
            "Examples",
        ),
        (
            lambda at: FeatureSpec.from_dict({**SPEC, "history": {"max_length": 9}}).save(
                at / "features.yaml"
            ),
            "feature spec",
        ),
    ],
)
def test_checkpoints_of_another_run_are_refused(folders, jobs, capsys, change, what):
    config = "name: laser\ncluster: local:ps=1,workers=1\n"
    assert run(folders, config) == 0
    change(folders)
    if what == "model":
        config += "model: {dim: 64}\n"
    assert run(folders, config) == EXIT_OTHER_RUN
    assert f"is of a run with another {what}: give another --output" in capsys.readouterr().err
    assert len(jobs) == 1


def test_more_epochs_and_other_rates_go_on(folders, jobs):
    config = "name: laser\ncluster: local:ps=1,workers=1\n"
    assert run(folders, config) == 0
    assert run(folders, config + "training: {epochs: 9, dense_learning_rate: 0.1}\n") == 0


def test_without_examples_it_says_what_makes_them(folders, jobs, capsys):
    assert run(folders, examples=False) == 1
    assert "nothing was run there yet" in capsys.readouterr().err
    for file in (folders / "examples" / "Split-eval").iterdir():
        file.unlink()
    assert run(folders) == 1
    assert "holds no Examples of split eval" in capsys.readouterr().err
    assert not jobs


def test_a_wrong_cluster_is_refused_with_its_exit_code(folders, capsys):
    assert run(folders, "name: laser\n", "--cluster", "local:ps=2") == EXIT_BAD_CLUSTER
    assert "no workers" in capsys.readouterr().err
    assert run(folders, "name: laser\ncluster: local:ps=2\n") == 1
    assert "cluster is 'local:ps=2'" in capsys.readouterr().err


def test_a_chief_without_its_task_is_refused(folders, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"ps": ["a:1"]}, "task": {"type": "chief"}}')
    assert run(folders) == EXIT_BAD_CLUSTER
    assert "no worker" in capsys.readouterr().err
