"""What a run's artifacts say about why nothing was pushed."""

import pytest

from tfx_pipeline.results.past_runs import NodeRun, PipelineRun


@pytest.fixture
def run():
    def make(evaluator=1, serving=1, pushed=1, **states):
        outputs = {
            "Evaluator": {"blessing": [("uri", {"blessed": evaluator})]},
            "ServingCheck": {"blessing": [("uri", {"blessed": serving, "reason": "wrong scores"})]},
            "Pusher": {
                "pushed_model": [("uri", {"pushed": pushed, "pushed_destination": "/models/7"})]
            },
        }
        nodes = {
            name: NodeRun(name, states.get(name, "COMPLETE"), 1.0, out)
            for name, out in outputs.items()
        }
        return PipelineRun("laser", "today", nodes)

    return make


def test_a_pushed_model_has_no_problems(run):
    assert run().problems == []
    assert run().pushed == "/models/7"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"evaluator": 0, "pushed": 0}, "Evaluator did not bless the model"),
        ({"serving": 0, "pushed": 0}, "ServingCheck did not bless the model: wrong scores"),
        ({"pushed": 0}, "Pusher pushed nothing"),
        ({"Evaluator": "FAILED"}, "Evaluator failed"),
    ],
)
def test_each_way_to_push_nothing_is_told(run, changes, problem):
    assert run(**changes).problems == [problem]


def test_a_run_that_ended_before_the_pusher_pushed_nothing():
    failed = NodeRun("Trainer", "FAILED", 1.0, {})
    run = PipelineRun("laser", "today", {"Trainer": failed})
    assert run.pushed is None and run.problems == ["Trainer failed"]
