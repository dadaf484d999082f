"""The evaluation: exact click metrics by slice, compared with the last blessed model.

An Example holds a request with N candidates, so TFMA's own metrics, which take one label and one
prediction per Example, do not fit. ``RankingMetrics`` is a TFMA metric that takes whole requests.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from numpy.typing import NDArray
from tensorflow_model_analysis import constants
from tensorflow_model_analysis.metrics import metric_types, metric_util

from tfx_pipeline.ranking_metrics import (
    auc,
    calibration,
    group_auc,
    log_loss,
    normalised_entropy,
)

HISTORY_BUCKET = "history_bucket"
METRICS = (
    "auc",
    "gauc",
    "log_loss",
    "normalised_entropy",
    "calibration",
    "impressions",
    "click_rate",
)
"""Of the first label; those of a further one have its name behind theirs: ``auc_like``."""
OUTPUT = "probability"
_BUCKETS = ((0, "0"), (10, "1-10"), (50, "11-50"), (200, "51-200"), (1000, "201-1000"))
_USER = "request_user_id"


def history_bucket(length: int) -> str:
    """Slice of a history length.

    Example:
        >>> [history_bucket(length) for length in (0, 10, 11, 5000)]
        ['0', '1-10', '11-50', 'over 1000']
    """
    return next((name for most, name in _BUCKETS if length <= most), f"over {_BUCKETS[-1][0]}")


def make_eval_config(
    label: str,
    slice_features: list[str],
    min_auc: float,
    max_auc_drop: float,
    code_fingerprint: str,
    more_labels: Sequence[str] = (),
) -> tfma.EvalConfig:
    """The Evaluator's configuration.

    Args:
        label: Name of the label that the model predicts.
        slice_features: Features of the Examples to slice by, beside the history's length.
        min_auc: A model is blessed only above it.
        max_auc_drop: By how much AUC may lie below the last blessed model's.
        code_fingerprint: Enters the cache key, so that changed metrics are computed again.
        more_labels: Further binary labels; the model's outputs are ``probability_<label>``.
    """
    threshold = tfma.MetricThreshold(
        value_threshold=tfma.GenericValueThreshold(lower_bound={"value": min_auc}),
        change_threshold=tfma.GenericChangeThreshold(
            direction=tfma.MetricDirection.HIGHER_IS_BETTER,
            absolute={"value": -max_auc_drop},
        ),
    )
    # A slice may be too small to judge by; the whole split decides.
    overall = tfma.PerSliceMetricThresholds(
        thresholds=[
            tfma.PerSliceMetricThreshold(slicing_specs=[tfma.SlicingSpec()], threshold=threshold)
        ]
    )
    metric = tfma.MetricConfig(
        class_name="RankingMetrics",
        module="tfx_pipeline.definition.evaluation",
        config=json.dumps(
            {
                "label": label,
                "more_labels": list(more_labels),
                "code_fingerprint": code_fingerprint,
            }
        ),
    )
    slices = [[], [HISTORY_BUCKET], *([name] for name in slice_features)]
    return tfma.EvalConfig(
        model_specs=[
            tfma.ModelSpec(
                model_type="tf_generic",
                signature_name="serving_examples",
                label_key=f"label_{label}",
                prediction_key=OUTPUT,
            )
        ],
        slicing_specs=[tfma.SlicingSpec(feature_keys=keys) for keys in slices],
        metrics_specs=[tfma.MetricsSpec(metrics=[metric], per_slice_thresholds={"auc": overall})],
    )


def custom_extractors(
    eval_shared_model: Any, eval_config: tfma.EvalConfig, tensor_adapter_config: Any
) -> list[Any]:
    """TFMA's extractors, and before the slicing one that adds the bucket of the history length."""
    extractors = tfma.default_extractors(
        eval_shared_model=eval_shared_model,
        eval_config=eval_config,
        tensor_adapter_config=tensor_adapter_config,
    )
    bucket = tfma.extractors.Extractor(
        stage_name="AddHistoryBucket", ptransform=beam.Map(_add_history_bucket)
    )
    names = [extractor.stage_name for extractor in extractors]
    extractors.insert(names.index("ExtractSliceKeys"), bucket)
    return extractors


def _add_history_bucket(extracts: dict[str, Any]) -> dict[str, Any]:
    extracts = copy.copy(extracts)
    features = dict(extracts[constants.FEATURES_KEY])
    lengths = np.asarray(features["history_length"]).reshape(-1)
    features[HISTORY_BUCKET] = np.array([[history_bucket(length)] for length in lengths])
    extracts[constants.FEATURES_KEY] = features
    return extracts


class RankingMetrics(tfma.metrics.Metric):
    """AUC, gAUC, log loss and calibration over the candidates of requests, all exact.

    Exact means that scores are kept, not binned: 13 bytes per impression of a slice.

    Args:
        label: The first label.
        more_labels: Further ones, see ``make_eval_config``.
        code_fingerprint: Ignored; it makes the Evaluator's cache key change with the code.
    """

    def __init__(
        self,
        name: str = "ranking",
        label: str = "click",
        more_labels: Sequence[str] = (),
        code_fingerprint: str = "",
    ) -> None:
        del code_fingerprint
        super().__init__(
            metric_util.merge_per_key_computations(_computations),
            name=name,
            label=label,
            more_labels=list(more_labels),
        )


def _computations(
    name: str | None = None,
    eval_config: tfma.EvalConfig | None = None,
    model_name: str = "",
    output_name: str = "",
    label: str = "click",
    more_labels: Sequence[str] = (),
    **_: Any,
) -> list[Any]:
    # Thresholds are looked up under keys with example_weighted=None, which is not the default.
    computations = []
    for each in (label, *more_labels):
        keys = {
            metric: metric_types.MetricKey(
                name=metric if each == label else f"{metric}_{each}",
                model_name=model_name,
                output_name=output_name,
                example_weighted=None,
            )
            for metric in METRICS
        }
        output = OUTPUT if each == label else f"{OUTPUT}_{each}"
        computations.append(
            metric_types.MetricComputation(
                keys=list(keys.values()),
                preprocessors=[_Requests(model_name, f"label_{each}", output)],
                combiner=_Combine(keys),
            )
        )
    return computations


class _Requests(metric_types.Preprocessor):
    """A request's extracts in, its users, labels and scores out: arrays [n]."""

    def __init__(self, model_name: str, label: str, output: str) -> None:
        super().__init__(name=f"requests_of_{model_name}_{output}")
        self._model_name, self._label, self._output = model_name, label, output

    def process(self, extracts: dict[str, Any]) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
        labels = extracts[constants.FEATURES_KEY][self._label]
        scores = _of_model(extracts[constants.PREDICTIONS_KEY], self._model_name)
        # A model of one label answers with it alone, one of several by their names.
        scores = scores[self._output] if isinstance(scores, dict) else scores
        labels = np.asarray(labels, np.int8).reshape(-1)
        # The model answers as many columns as the batch's longest request has candidates.
        scores = np.asarray(scores, np.float32).reshape(-1)[: len(labels)]
        user = np.asarray(extracts[constants.FEATURES_KEY][_USER]).reshape(-1)[0]
        yield np.full(len(labels), user, np.int64), labels, scores


def _of_model(value: Any, model_name: str) -> Any:
    return value[model_name] if isinstance(value, dict) and model_name in value else value


class _Combine(beam.CombineFn):
    """Collects the impressions of a slice and computes every metric once."""

    def __init__(self, keys: dict[str, Any]) -> None:
        self._keys = keys

    def create_accumulator(self) -> list[tuple[NDArray, NDArray, NDArray]]:
        return []

    def add_input(self, accumulator: list, element: tuple[NDArray, NDArray, NDArray]) -> list:
        accumulator.append(element)
        return accumulator

    def merge_accumulators(self, accumulators: Any) -> list:
        return [part for accumulator in accumulators for part in accumulator]

    def compact(self, accumulator: list) -> list:
        return [_concatenate(accumulator)] if accumulator else []

    def extract_output(self, accumulator: list) -> dict[Any, float]:
        users, labels, scores = _concatenate(accumulator)
        values = {
            "auc": auc(labels, scores),
            "gauc": group_auc(users, labels, scores),
            "log_loss": log_loss(labels, scores),
            "normalised_entropy": normalised_entropy(labels, scores),
            "calibration": calibration(labels, scores),
            "impressions": float(len(labels)),
            "click_rate": float(np.mean(labels)),
        }
        return {self._keys[name]: value for name, value in values.items()}


def _concatenate(parts: list[tuple[NDArray, NDArray, NDArray]]) -> tuple[NDArray, ...]:
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


metric_types.register_metric(RankingMetrics)
