"""The whole way from events to a rank answer, and what runs after it."""

import glob
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from laser_features import FeatureSpec
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.load_store import load_store
from tfx_pipeline.ranking_metrics import auc, calibration, group_auc, log_loss
from tfx_pipeline.results.past_runs import read_runs
from tfx_pipeline.runners.local import run_local
from tfx_pipeline.training.parsing import parse_examples

KILL_RUN = Path(__file__).parent / "kill_run.py"
# A busy machine takes minutes for what a quiet one does in one.
pytestmark = pytest.mark.timeout(900)


def eval_examples(demo):
    run = read_runs(demo.config().metadata)[0]
    uri, _ = run.nodes["SeqVaultExampleGen"].output("examples")
    files = sorted(glob.glob(f"{uri}/Split-eval/*"))
    return list(tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator())


def states(demo):
    return {name: node.state for name, node in read_runs(demo.config().metadata)[-1].nodes.items()}


def versions(demo):
    return sorted(path.name for path in demo.config().serving.iterdir())


def test_a_model_was_trained_checked_and_pushed(demo):
    report = demo.result["report"]
    assert os.path.isfile(os.path.join(report["pushed"], "saved_model.pb"))
    assert report["problems"] == [] and report["anomalies"] == []
    join = report["join"]
    assert join["impressions"] == 5000 == join["impressions_train"] + join["impressions_eval"]
    assert join["requests"] == 500
    assert {"train/auc", "eval/auc"} <= set(report["training"])
    slices = [name for name in report["evaluation"] if name.startswith("scenario=")]
    assert slices == ["scenario=0", "scenario=1", "scenario=2"]
    numbers = [number for metrics in report["evaluation"].values() for number in metrics.values()]
    assert all(isinstance(number, float) for number in numbers)


def test_a_live_event_changes_the_next_answer(demo):
    ranking = demo.result["ranking"]
    before, after = ranking.before, ranking.after
    assert after["history_length"] == min(before["history_length"] + 1, 60)
    scores = [{each["item_id"]: each["score"] for each in answer["ranked"]}
              for answer in (before, after)]  # fmt: skip
    assert set(scores[0]) == set(scores[1]) and scores[0] != scores[1]
    for latency in (before["latency"], after["latency"]):
        parts = latency["store_ms"] + latency["features_ms"] + latency["model_ms"]
        assert 0 < parts <= latency["total_ms"] + 0.01


def test_the_evaluation_is_exact(demo):
    """The pushed model, asked again, gives the metrics that the Evaluator reported."""
    model = tf.saved_model.load(demo.result["report"]["pushed"])
    users, labels, scores = [], [], []
    for serialized in eval_examples(demo):
        feature = tf.train.Example.FromString(serialized).features.feature
        clicks = list(feature["label_click"].int64_list.value)
        answer = model.signatures["serving_examples"](tf.constant([serialized]))
        users += [feature["request_user_id"].int64_list.value[0]] * len(clicks)
        labels += clicks
        scores += answer["probability"].numpy()[0].tolist()
    found = demo.result["report"]["evaluation"][""]
    assert found["impressions"] == len(labels)
    assert found["auc"] == pytest.approx(auc(labels, scores), abs=1e-5)
    assert found["gauc"] == pytest.approx(group_auc(users, labels, scores), abs=1e-5)
    assert found["log_loss"] == pytest.approx(log_loss(labels, scores), abs=1e-5)
    assert found["calibration"] == pytest.approx(calibration(labels, scores), abs=1e-5)
    assert found["click_rate"] == pytest.approx(np.mean(labels))


class RecordingModel:
    """Stands where the gateway's client of the model server stands."""

    def predict(self, inputs, output, call):
        self.inputs = inputs
        return 1, np.zeros((1, inputs["candidate_item_id"].shape[1]), np.float32)


@pytest.fixture
def gateway_inputs(demo):
    """What the gateway sends to the model for the request of an Example."""
    from seqvault import SeqVault
    from serving.gateway.ranker import Ranker
    from serving.runtime.call import Call

    spec = FeatureSpec.load(demo.dataset / "features.yaml")
    with SeqVault.open(demo.store) as store:
        model = RecordingModel()
        ranker = Ranker(spec, store, model)

        def send(request):
            ranker.rank(request, Call(None))
            return model.inputs

        yield send, store


def raw_request(demo, serialized):
    """The rank request as a caller would send it, from the impressions."""
    import pyarrow.parquet as pq

    feature = tf.train.Example.FromString(serialized).features.feature
    user = feature["request_user_id"].int64_list.value[0]
    time = feature["request_time_ms"].int64_list.value[0]
    spec = FeatureSpec.load(demo.dataset / "features.yaml")
    rows = pq.read_table(
        demo.dataset / "impressions.parquet",
        filters=[("user_id", "==", user), ("timestamp", "==", time)],
    ).to_pylist()
    fields = ["item_id", *spec.candidate_fields]
    context = {name: rows[0][name] for name in spec.context_fields if name in spec.request_fields}
    return {
        "user_id": user,
        "time_ms": time,
        "candidates": [{name: row[name] for name in fields} for row in rows],
        "context": context,
    }


def same_bytes(one, other):
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def test_training_and_serving_see_the_same_bytes(demo, gateway_inputs):
    """No skew: what the trainer parses is what the gateway builds."""
    send, _ = gateway_inputs
    spec = FeatureSpec.load(demo.dataset / "features.yaml")
    examples = eval_examples(demo)
    assert len(examples) > 50
    for serialized in examples[::5]:
        trained = parse_examples(tf.constant([serialized]), spec)
        served = send(raw_request(demo, serialized))
        for model_input in spec.model_inputs():
            name = model_input.name
            assert same_bytes(trained[name].numpy(), np.asarray(served[name])), name


def test_events_at_and_after_the_request_change_nothing(demo, gateway_inputs):
    """No leakage, through the path that serves; the join's own test is in the components."""
    send, store = gateway_inputs
    request = raw_request(demo, eval_examples(demo)[-1])
    before = {name: np.array(value) for name, value in send(request).items()}
    event = {name: [0] for name in store.schema.names} | {"user_id": [request["user_id"]]}
    for time in (request["time_ms"], request["time_ms"] + 1):
        store.append({**event, "timestamp": [time]})
        after = send(request)
        assert all(same_bytes(before[name], np.asarray(after[name])) for name in before)
    store.append({**event, "timestamp": [request["time_ms"] - 1]})
    after = send(request)
    assert not all(same_bytes(before[name], np.asarray(after[name])) for name in before)


@pytest.fixture(scope="module")
def settled(demo):
    """The demo, its store again as it was before the live event and the tests' own."""
    load_store(demo.dataset, demo.store, replace=True)
    return demo


@pytest.mark.long
def test_a_run_killed_in_join_training_and_push_ends_as_the_undisturbed_one(settled, tmp_path):
    """The same command again, three times; `make test-kill` does this at random moments."""
    given = {"data": settled.dataset, "store": settled.store, "work": tmp_path / "killed"}
    arguments = [f"--{name}={path}" for name, path in given.items()]
    arguments.append(f"--config={settled.work / 'small.yaml'}")
    arguments.append(f"--whole={settled.run_folder}")
    kills = ["SeqVaultExampleGen ...:0.5", "train: :0.2", "Pusher ...:0"]
    command = [sys.executable, str(KILL_RUN), *arguments, *(f"--kill={kill}" for kill in kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("3 kills; the last run ended with the undisturbed result")


def test_a_second_run_with_nothing_changed_uses_the_cache(settled):
    pushed = versions(settled)
    run_local(settled.config())
    assert {name for name, state in states(settled).items() if state != "CACHED"} == {
        "latest_blessed_model"
    }
    assert versions(settled) == pushed


def test_a_changed_training_setting_reruns_only_what_depends_on_it(settled):
    report = run_local(settled.config(training={"batch_size": 64, "seed": 5}))
    ran = {name for name, state in states(settled).items() if state == "COMPLETE"}
    assert ran - {"latest_blessed_model"} == {"Trainer", "Evaluator", "ServingCheck", "Pusher"}
    # It was compared with the model that the run before had blessed.
    assert "auc_diff" in report["evaluation"][""]


def test_a_model_that_is_not_good_enough_is_not_pushed(settled):
    pushed = versions(settled)
    with pytest.raises(PipelineError, match=r"Evaluator did not bless the model .*AUC above 0.99"):
        run_local(settled.config(min_auc=0.99))
    ran = {name for name, state in states(settled).items() if state == "COMPLETE"}
    assert ran - {"latest_blessed_model"} == {"Evaluator", "Pusher"}
    assert versions(settled) == pushed


def processes_that_name(folder):
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            command = Path(path).read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(command)
    return found


def test_an_interrupted_demo_leaves_nothing_running_or_half_written(tmp_path, small_config):
    # A shell starts background jobs with Ctrl-C ignored; here a person sits at the terminal.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "import sys; from pathlib import Path; from tfx_pipeline import cli;"
        "from tfx_pipeline.demo import demo;"
        "from tfx_pipeline.datasets import GeneratorSettings as G;"
        "run = demo.run_demo; small = G(users=30, items=1000, max_events=100, requests=60);"
        "demo.run_demo = lambda work, **given: run("
        f"    work, **given, generator=small, config={str(small_config)!r});"
        f"sys.exit(cli.main(['demo', '--work', {str(tmp_path)!r}]))"
    )
    demo = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in demo.stdout:
        if "SeqVaultExampleGen ..." in line:
            break
    demo.send_signal(signal.SIGINT)
    demo.stdout.read()
    assert demo.wait(timeout=60) == 130
    assert processes_that_name(tmp_path) == []
    work = tmp_path / "generated"
    assert (work / "run").exists() and not (work / "run" / "serving").exists()
    assert not list(work.glob(".*partial"))
