"""Anomalies end a run unless they are allowed by name."""

from __future__ import annotations

import pytest
from tensorflow_metadata.proto.v0 import anomalies_pb2

from components.anomaly_gate.executor import AnomaliesError, check_anomalies, read_anomalies


@pytest.fixture
def found(tmp_path):
    for split, features in {"train": ["history_tag", "context_hour"], "eval": []}.items():
        content = anomalies_pb2.Anomalies()
        for name in features:
            content.anomaly_info[name].description = f"{name} is\nodd"
        folder = tmp_path / f"Split-{split}"
        folder.mkdir()
        (folder / "SchemaDiff.pb").write_bytes(content.SerializeToString())
    return read_anomalies(str(tmp_path))


def test_anomalies_are_named_with_what_allows_them(found):
    with pytest.raises(AnomaliesError) as caught:
        check_anomalies(found, [])
    message = str(caught.value)
    assert "train: history_tag: history_tag is odd" in message
    assert "allow_anomalies: [context_hour, history_tag]" in message
    with pytest.raises(AnomaliesError, match="history_tag"):
        check_anomalies(found, ["context_hour"])


def test_anomalies_that_are_allowed_pass(found):
    assert [anomaly.feature for anomaly in found] == ["context_hour", "history_tag"]
    check_anomalies(found, ["history_tag", "context_hour", "another"])
    check_anomalies([], [])
