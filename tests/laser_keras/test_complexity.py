"""The counter reproduces the paper's numbers and the audit of the execution orders."""

from typing import Any

import keras
import numpy as np
import pytest

from laser_keras import (
    DINEncoder,
    HSTUEncoder,
    LaserEncoder,
    LONGEREncoder,
    RankMixer,
    SIMEncoder,
    STCAEncoder,
    TransformerEncoder,
    TWINEncoder,
    complexity,
)
from laser_keras.models.comparison import comparison_encoder


def millions(value: float, digits: int = 2) -> float:
    return round(value / 1e6, digits)


def total(**kwargs: object) -> int:
    return sum(complexity.laser_macs(**kwargs).values())


def test_equations_18_to_20() -> None:
    assert millions(complexity.paper_laser()) == 40.14
    assert millions(complexity.paper_self_attention(), 1) == 321.5
    assert millions(complexity.paper_target_attention()) == 33.02
    ratio = complexity.paper_self_attention() / complexity.paper_laser()
    assert round(ratio, 1) == 8.0


def test_equation_18_is_the_sum_of_13_15_and_17() -> None:
    length, d, dq, w, e, m = 1000, 128, 32, 10, 4, 2
    projections = length * d * d + length * d * dq
    expected = projections + length / w * 2 * e * d * d + length / w * 2 * m * d * d
    assert complexity.paper_laser() == expected


@pytest.mark.parametrize(
    ("system", "printed"),
    [("Base", 1.3e7), ("DIN", 3.3e7), ("HSTU", 3.7e8), ("Transformer", 3.6e8), ("LASER", 4.0e7)],
)
def test_table_2(system: str, printed: float) -> None:
    found = complexity.paper_table_2()[system]
    digits = 10 ** (len(str(int(printed))) - 2)
    assert round(found / digits) == round(printed / digits)


def test_table_4_and_figure_3() -> None:
    default = complexity.paper_laser()
    assert round(complexity.paper_laser(segment_size=5) / default, 2) == 1.49
    assert round(complexity.paper_laser(segment_size=20) / default, 3) == 0.755
    slopes = [round(complexity.paper_laser(num_layers=m) / default, 3) for m in (1, 2, 3, 4)]
    assert slopes == [0.918, 1.0, 1.082, 1.163]
    for length in (500, 2000, 4000):
        assert complexity.paper_laser(length) / default == length / 1000


@pytest.mark.parametrize(
    ("candidates", "paper", "shared", "absorb", "best"),
    [
        (1, 40.39, 40.39, 15.47, 15.47),
        (10, 403.9, 219.6, 154.7, 153.4),
        (50, 2019, 1016, 773.3, 694.1),
        (200, 8078, 4002, 3093, 2715),
        (500, 20190, 9975, 7733, 6756),
    ],
)
def test_execution_orders(
    candidates: int, paper: float, shared: float, absorb: float, best: float
) -> None:
    for order, expected in (
        ("paper", paper),
        ("shared", shared),
        ("absorb", absorb),
        ("auto", best),
    ):
        found = total(candidates=candidates, implementation=order) / 1e6
        np.testing.assert_allclose(found, expected, rtol=5e-4)


def test_shares_of_the_cost_as_printed() -> None:
    parts = complexity.laser_macs(implementation="paper")
    everything = sum(parts.values())
    shares = {part: round(100 * value / everything, 1) for part, value in parts.items()}
    assert (shares["values"], shares["ffn"], shares["gsta"], shares["keys"]) == (
        40.6,
        32.5,
        16.4,
        10.1,
    )


def test_an_encoder_is_counted_by_its_own_arguments() -> None:
    encoder = LaserEncoder(1, 8, 20, 2, 3, implementation="absorb")
    found = complexity.encoder_macs(encoder, 3, 500, 64)
    assert found == complexity.laser_macs(3, 500, 64, 1, 8, 20, 2, 3, "absorb")
    assert found["keys"] == 0
    assert found["values"] == 3 * 25 * 64 * 64
    assert found["ffn"] == 3 * 25 * 2 * 2 * 64 * 64


def test_comparison_systems() -> None:
    assert complexity.din_macs() == complexity.paper_target_attention() + 128**2
    assert complexity.hstu_macs() == complexity.paper_table_2()["HSTU"] + 128**2
    assert complexity.self_attention_macs() == complexity.paper_table_2()["Transformer"] + 128**2
    unit = complexity.din_macs(hidden_units=(80, 40)) - 1000 * 128 * 80 - 128 * 80
    assert round(unit / 1e6, 1) == round(13.44 + 0.128, 1)
    assert complexity.twin_macs(length=10_000) < complexity.self_attention_macs(length=10_000) / 50


def test_rank_mixer_has_one_parameter_per_multiplication() -> None:
    mixer = RankMixer(4, 16, num_blocks=2, ffn_expansion=4)
    mixer.build((None, 64))
    kernels = [w for w in mixer.weights if w.name in ("hidden_kernel", "output_kernel")]
    assert sum(int(np.prod(w.shape)) for w in kernels) == complexity.rank_mixer_macs(4, 16)
    assert millions(complexity.rank_mixer_macs(), 0) == 151


def products(graph: Any) -> int:
    """Multiply-accumulates of the matrix products in a traced TensorFlow graph."""
    executed = 0
    for operation in graph.get_operations():
        if operation.type == "Einsum":
            equation = operation.get_attr("equation").decode()
            extents = {}
            left = equation.split("->")[0].split(",")
            for letters, tensor in zip(left, operation.inputs, strict=True):
                extents.update(zip(letters, tensor.shape, strict=True))
            executed += int(np.prod(list(extents.values())))
        elif "MatMul" in operation.type:
            first = operation.inputs[0].shape
            transposed = operation.get_attr(
                "transpose_a" if operation.type == "MatMul" else "adj_x"
            )
            executed += int(np.prod(operation.outputs[0].shape)) * first[-2 if transposed else -1]
    return executed


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="uses TensorFlow's profiler")
@pytest.mark.parametrize("candidates", [1, 12, 20])
@pytest.mark.parametrize("implementation", ["auto", "project", "absorb"])
@pytest.mark.parametrize("stacked", [0, 3])
def test_counts_equal_what_tensorflow_executes(
    candidates: int, implementation: str, stacked: int
) -> None:
    """The matrix products in the traced graph, counted from their shapes."""
    import tensorflow as tf

    length, width = 40, 16
    sizes = {"num_heads": 2, "key_dim": 4, "segment_size": 5, "ffn_expansion": 3}
    encoder = LaserEncoder(
        **sizes, num_layers=2, implementation=implementation, stacked_ffn_expansion=stacked
    )
    encoder.build((1, candidates, width), (1, length, width))
    graph = (
        tf.function(lambda t, h: encoder(t, h))
        .get_concrete_function(
            tf.TensorSpec((1, candidates, width)), tf.TensorSpec((1, length, width))
        )
        .graph
    )
    executed = products(graph)
    expected = complexity.encoder_macs(encoder, candidates, length, width)
    assert executed == sum(expected.values())


FEW_RECENT = {"num_recent_segments": 3}
SYSTEMS = {
    "laser_fast": (
        lambda: comparison_encoder("laser_fast", FEW_RECENT),
        lambda n: sum(
            complexity.encoder_macs(LaserEncoder(ffn_expansion=2, **FEW_RECENT), n, 40, 16).values()
        ),
    ),
    "din": (lambda: DINEncoder(), lambda n: complexity.din_macs(n, 40, 16, (), "auto")),
    "din_unit": (
        lambda: DINEncoder("activation_unit", hidden_units=(6, 5)),
        lambda n: complexity.din_macs(n, 40, 16, (6, 5)),
    ),
    "transformer": (
        lambda: TransformerEncoder(2, ffn_expansion=3),
        lambda n: complexity.self_attention_macs(n, 40, 16, 2, 3, True, "auto"),
    ),
    "transformer_shared": (
        lambda: TransformerEncoder(append_target=False),
        lambda n: complexity.self_attention_macs(n, 40, 16, 1, 0, False, "auto"),
    ),
    "base": (
        lambda: TransformerEncoder(recent_events=10),
        lambda n: complexity.self_attention_macs(n, 10, 16, 1, 0, True, "auto"),
    ),
    "hstu": (
        lambda: HSTUEncoder(2),
        lambda n: complexity.hstu_macs(n, 40, 16, 2, "research", "auto"),
    ),
    "hstu_v3": (
        lambda: HSTUEncoder(1, dialect="dlrm_v3"),
        lambda n: complexity.hstu_macs(n, 40, 16, 1, "dlrm_v3", "auto"),
    ),
    "twin": (
        lambda: TWINEncoder(10, 2, 5),
        lambda n: complexity.twin_macs(n, 40, 16, 10, 5, "auto"),
    ),
    "sim_soft": (
        lambda: SIMEncoder("soft", 10, 2, 5),
        lambda n: complexity.sim_macs(n, 40, 16, "soft", 10, 5, "auto", training=True),
    ),
    "stca": (
        lambda: STCAEncoder(2, 4, 3),
        lambda n: complexity.stca_macs(n, 40, 16, 2, 4, 3),
    ),
    "longer": (
        lambda: LONGEREncoder(4, 6, 1, 2, 3),
        lambda n: complexity.longer_macs(n, 40, 16, 4, 6, 1, 3),
    ),
}


def test_the_fast_form_halves_the_products_of_the_segments_network_alone() -> None:
    counts = []
    for system in ("laser", "laser_fast"):
        encoder = comparison_encoder(system, FEW_RECENT)
        encoder.build((1, 10, 32), (1, 1000, 32))
        counts.append(dict(complexity.encoder_macs(encoder, 10, 1000, 32)))
    assert counts[0] == {**counts[1], "ffn": 2 * counts[1]["ffn"]}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="reads TensorFlow's graph")
@pytest.mark.parametrize("candidates", [1, 3, 30])
@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_counts_of_the_comparison_systems_equal_what_tensorflow_executes(
    system: str, candidates: int
) -> None:
    import tensorflow as tf

    make, expected = SYSTEMS[system]
    encoder = make()
    encoder.build((1, candidates, 16), (1, 40, 16))
    graph = (
        tf.function(lambda t, h: encoder(t, h))
        .get_concrete_function(tf.TensorSpec((1, candidates, 16)), tf.TensorSpec((1, 40, 16)))
        .graph
    )
    assert products(graph) == expected(candidates)


def test_the_activation_units_split_first_layer() -> None:
    """44.2 million MACs per candidate as printed, 13.5 split."""
    printed = 1000 * (4 * 128 * 80 + 80 * 40 + 40)
    one, two = (complexity.din_macs(n, hidden_units=(80, 40)) for n in (1, 2))
    split = two - one - 1000 * 128 - 128 * 80  # less the weighted sum and the target's part
    assert (millions(printed, 1), millions(split, 1)) == (44.2, 13.5)
