"""What the paper leaves open: numbers of our answers, and the table that lists them all."""

import math
import re
from pathlib import Path

import keras
import laser_reference as reference
import numpy as np
import pytest
from layer_tools import assert_close, randomise, run, to_numpy, weights_by_name

from laser_keras import (
    CombinedEncoder,
    DINEncoder,
    GlobalStackedTargetAttention,
    MultiResolutionFusion,
    PoolingEncoder,
    SegmentedTargetAttention,
    TargetAttention,
)

ROOT = Path(__file__).parents[2]
D = 8


def data(length: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    target = rng.normal(size=(2, 3, D)).astype("float32")
    return target, rng.normal(size=(2, length, D)).astype("float32")


def make(width: int = D, **kwargs: object) -> SegmentedTargetAttention:
    layer = SegmentedTargetAttention(**{"num_heads": 2, "key_dim": 4, "segment_size": 4, **kwargs})
    layer.build((None, None, width), (None, None, width))
    return layer


def test_the_table_names_tests_that_there_are() -> None:
    table = (ROOT / "docs" / "layers" / "decisions.md").read_text()
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", table))
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == list(range(1, 21))
    assert len(named) > 40
    there = {
        (path.name, name)
        for room in ("laser_keras", "tfx_pipeline/training")
        for path in (ROOT / "tests" / room).glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert named <= there, named - there


def test_gamma_defaults_to_the_root_of_the_key_width_fixed_or_learned() -> None:
    target, history = data()
    expected = None
    for gamma in (2.0, None, "learned"):  # key_dim 4
        layer = make(gamma=gamma)
        learned = layer.raw_gamma
        if learned is not None:
            start = to_numpy(learned)
            np.testing.assert_allclose(np.log1p(np.exp(start)), 2.0, rtol=1e-6)
        rng = np.random.default_rng(0)
        for weight in layer.trainable_weights:
            if weight is not learned:
                weight.assign(rng.normal(0, 0.3, weight.shape))
        outputs = to_numpy(run(layer, target=target, history=history))
        expected = outputs if expected is None else expected
        assert_close(outputs, expected)


def test_a_gate_bias_of_minus_log_w_starts_a_segment_at_about_the_mean_of_its_values() -> None:
    """The gates of 10 events start at 1 / 11 each, without it at 1 / 2: 10 / 11 and 5 in all."""
    target, history = np.zeros((1, 1, D), "float32"), np.ones((1, 10, D), "float32")
    for bias, total in ((-math.log(10), 10 / 11), (None, 5.0)):
        layer = make(segment_size=10, gate_bias=bias, ffn_expansion=0, norm="none")
        layer.value_kernel.assign(np.eye(D))
        outputs = run(layer, target=target, history=history)
        assert_close(outputs, np.full((1, 1, 1, D), total, "float32"))


def test_the_bias_of_the_keys_is_an_offset_of_the_query() -> None:
    """``q . (k + b) = q . k + q . b``: for one target, a bias of the gate."""
    target, history = data()
    with_bias = make(use_bias=True)
    randomise(with_bias)
    w = weights_by_name(with_bias)
    for name in ("query_bias", "value_bias"):
        getattr(with_bias, name).assign(np.zeros(w[name].shape))
    query = (target[:1, :1].astype("float64") @ w["query_kernel"]).reshape(2, 4) / 2.0
    offsets = (query * w["key_bias"].reshape(2, 4)).sum(axis=1)
    shifted = make(gate_bias=0.0)
    own = {weight.path.split("/", 1)[-1]: weight for weight in shifted.weights}
    for name, weight in own.items():
        weight.assign(offsets if name == "score_bias" else w[name])
    one = {"target": target[:1, :1], "history": history[:1]}
    assert_close(run(with_bias, **one), run(shifted, **one))


def gated_by(scale: float, epsilon: float) -> np.ndarray:
    """A segment of deviation 2.02, gated by ``scale``, behind the normalisation: [128]."""
    layer = make(
        128,
        segment_size=1,
        ffn_expansion=0,
        gamma=math.inf,
        gate_bias=math.log(scale / (1 - scale)),
        epsilon=epsilon,
    )
    layer.value_kernel.assign(np.eye(128))
    history = np.random.default_rng(0).normal(size=(1, 1, 128))
    history = 2.02 * (history - history.mean()) / history.std()
    inputs = {"target": np.ones((1, 1, 128), "float32"), "history": history.astype("float32")}
    return to_numpy(run(layer, **inputs))[0, 0, 0]


@pytest.mark.parametrize(
    ("epsilon", "lengths"),
    [
        (1e-6, {0.03: 11.3, 0.01: 11.3, 0.003: 11.2, 1e-4: 2.2}),
        (1e-3, {0.03: 10.0, 0.01: 6.1, 0.003: 2.1}),  # Keras' default
    ],
)
def test_what_epsilon_leaves_of_a_weakly_gated_segment(
    epsilon: float, lengths: dict[float, float]
) -> None:
    """Of ``sqrt(128) = 11.31``; only gates of about 1e-4 fade with the default of 1e-6."""
    found = {scale: round(float(np.linalg.norm(gated_by(scale, epsilon))), 1) for scale in lengths}
    assert found == lengths
    assert SegmentedTargetAttention().epsilon == 1e-6
    assert SegmentedTargetAttention(epsilon=epsilon).get_config()["epsilon"] == epsilon


def test_a_network_of_rectifiers_hides_the_size_of_the_gates_completely() -> None:
    """Positively homogeneous: a hundredth of the gates, the same token to 3e-4."""
    target, history = data()
    outputs = []
    for gate in (0.5, 0.005):
        layer = make(activation="relu", gamma=math.inf, gate_bias=math.log(gate / (1 - gate)))
        rng = np.random.default_rng(0)
        for weight in layer.trainable_weights:
            if weight.name.endswith("kernel"):  # the network's biases stay zero
                weight.assign(rng.normal(size=weight.shape))
        outputs.append(to_numpy(run(layer, target=target, history=history)))
    assert np.abs(outputs[0]).max() > 0.5
    np.testing.assert_allclose(outputs[1], outputs[0], atol=3e-4)


@pytest.mark.parametrize("norm", ["post", "pre", "none"])
def test_where_the_normalisation_stands(norm: str) -> None:
    target, history = data()
    layer = make(norm=norm)
    randomise(layer)
    w = weights_by_name(layer)
    outputs = to_numpy(run(layer, target=target, history=history))
    s = reference.sta_loop(
        target[1, 2].astype("float64"),
        history[1].astype("float64"),
        w,
        heads=2,
        key_dim=4,
        segment_size=4,
    )
    if norm == "post":
        expected = reference.refine(s, w)
    elif norm == "pre":
        inner = reference.layer_norm(s, w["layer_norm/gamma"], w["layer_norm/beta"], 1e-6)
        expected = s + reference.feed_forward(inner, w, "feed_forward/")
    else:
        expected = s + reference.feed_forward(s, w, "feed_forward/")
    assert_close(outputs[1, 2], expected)


def test_one_segment_over_the_whole_history_is_plain_sigmoid_attention() -> None:
    target, history = data()
    mask = np.arange(12) < np.array([[12], [5]])
    layer = make(segment_size=12, ffn_expansion=0, norm="none")
    plain = TargetAttention(2, 4, "sigmoid")
    inputs = {"target": target, "history": history, "mask": mask}
    run(plain, **inputs)
    randomise(layer)
    for name in ("query_kernel", "key_kernel", "value_kernel"):
        getattr(plain, name).assign(to_numpy(getattr(layer, name)))
    assert_close(to_numpy(run(layer, **inputs))[:, :, 0], run(plain, **inputs))


def test_the_scale_of_the_scores_can_be_chosen() -> None:
    """Scores are linear in the query: twice the scale is twice ``Wq``."""
    target, history = data()
    chosen, default = GlobalStackedTargetAttention(1, 2, 1.0), GlobalStackedTargetAttention(1, 2)
    for layer in (chosen, default):
        layer.build(target.shape, history.shape)
        randomise(layer)
    # 1 / sqrt(8 / 2) is the default.
    default.query_kernels[0].assign(2.0 * to_numpy(default.query_kernels[0]))
    inputs = {"target": target, "history": history}
    assert_close(run(chosen, **inputs), run(default, **inputs))


def test_more_recent_segments_than_there_are_is_an_error_that_says_so() -> None:
    z, segments = np.zeros((1, 4), "float32"), np.zeros((1, 2, 4), "float32")
    message = "`num_recent_segments` must not be larger.*Received: num_recent_segments 3, 2 segm"
    with pytest.raises(ValueError, match=message):
        MultiResolutionFusion(3)(z, segments)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only its graphs have no shape")
def test_a_length_known_at_run_time_alone_may_be_shorter_than_the_recent_segments() -> None:
    import tensorflow as tf

    fusion = MultiResolutionFusion(3)
    specs = [tf.TensorSpec(shape) for shape in ((None, 2), (None, None, 2))]
    graph = tf.function(lambda z, s: fusion(z, s), input_signature=specs)
    outputs = graph(np.array([[9, 9]], "float32"), np.array([[[1, 2], [3, 0]]], "float32"))
    assert outputs.numpy().tolist() == [[[9, 9], [3, 2], [1, 2], [3, 0], [0, 0]]]


def test_encoders_side_by_side_keep_their_tokens_in_order() -> None:
    target, history = data()
    parts = [DINEncoder(), PoolingEncoder()]
    inputs = {"target": target, "history": history}
    together = to_numpy(run(CombinedEncoder(parts), **inputs))
    expected = [to_numpy(run(part, **inputs)) for part in parts]
    assert_close(together, np.concatenate(expected, axis=-2))
