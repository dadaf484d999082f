"""What the demo's summary shows beside its own run."""

import json
from types import SimpleNamespace

from tfx_pipeline.demo.summary import measured_beside


def test_a_kept_comparison_is_shown_for_the_very_dataset_it_was_made_on(tmp_path) -> None:
    dataset = {"source": "generated, seed 7", "counts": {"events": 5}}
    kept = {"dataset": dataset, "seeds": [1, 2], "auc": {"din": 0.80613}, "from": "results.json"}
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(kept))
    assert measured_beside(SimpleNamespace(**dataset), path) == [
        "beside it: AUC of din 0.8061 (mean of seeds [1, 2], results.json)"
    ]
    other = SimpleNamespace(source="generated, seed 8", counts={"events": 5})
    assert measured_beside(other, path) == []
    assert measured_beside(SimpleNamespace(**dataset), tmp_path / "absent.json") == []
