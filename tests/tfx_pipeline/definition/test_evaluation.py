"""The Evaluator's metrics of every label are what NumPy finds on the same impressions."""

import numpy as np
import pytest

from tfx_pipeline.definition.evaluation import METRICS, RankingMetrics


def test_metrics_of_further_labels_are_of_their_own_outputs():
    rng = np.random.default_rng(3)
    requests, scored = [], {"click": [], "like": []}
    for user, count in ((1, 3), (2, 5), (1, 4), (3, 2)):
        extracts = {"features": {"request_user_id": np.array([user])}, "predictions": {}}
        for name, output in (("click", "probability"), ("like", "probability_like")):
            labels, scores = rng.integers(0, 2, count), rng.uniform(0.1, 0.9, 6)
            extracts["features"][f"label_{name}"] = labels
            extracts["predictions"][output] = scores.astype(np.float32)  # padded to 6
            scored[name].append((labels, scores[:count].astype(np.float32)))
        requests.append(extracts)
    found = {}
    for each in RankingMetrics(label="click", more_labels=["like"]).computations():
        combiner, (preprocessor,) = each.combiner, each.preprocessors
        accumulator = combiner.create_accumulator()
        for extracts in requests:
            for element in preprocessor.process(extracts):
                accumulator = combiner.add_input(accumulator, element)
        values = combiner.extract_output(combiner.compact(accumulator))
        found.update({key.name: value for key, value in values.items()})
    assert set(found) == {*METRICS, *(f"{name}_like" for name in METRICS)}
    for name, suffix in (("click", ""), ("like", "_like")):
        labels, scores = (np.concatenate(part) for part in zip(*scored[name], strict=True))
        gaps = scores[labels == 1][:, None] - scores[labels == 0]
        assert found[f"auc{suffix}"] == pytest.approx(np.mean((gaps > 0) + 0.5 * (gaps == 0)))
        losses = np.where(labels == 1, -np.log(scores), -np.log1p(-scores))
        assert found[f"log_loss{suffix}"] == pytest.approx(losses.mean(), rel=1e-5)
        assert found[f"calibration{suffix}"] == pytest.approx(scores.sum() / labels.sum())
        assert found[f"click_rate{suffix}"] == pytest.approx(labels.mean())
    assert found["auc"] != found["auc_like"]
