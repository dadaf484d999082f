"""``RecencyEmbedding``."""

import keras
import numpy as np
import pytest
from layer_tools import to_numpy

from laser_keras import RecencyEmbedding


def edges(count: int) -> list[int]:
    """Smallest age in seconds of each bucket, in exact integers.

    ``8 log2(1 + a / 60) >= k`` is ``(60 + a)^8 >= 2^k 60^8``.
    """
    found = []
    for k in range(count):
        low, high = 0, 2**40
        while low < high:
            middle = (low + high) // 2
            if (60 + middle) ** 8 >= 2**k * 60**8:
                high = middle
            else:
                low = middle + 1
        found.append(low)
    return found


def test_golden_rows() -> None:
    layer = RecencyEmbedding(dim=2)
    minute, day, year = 60, 86_400, 365 * 86_400
    ages = np.array([0, 5, 6, minute, day, 5 * year, 2**31 - 1])
    assert to_numpy(layer.rows(ages)).tolist() == [1, 1, 2, 9, 84, 171, 191]


def test_every_edge_is_exact() -> None:
    layer = RecencyEmbedding(dim=2)
    starts = [edge for edge in edges(191) if edge < 2**31]
    ages = np.array(starts, "int64")
    expected = np.searchsorted(ages, ages, side="right")
    np.testing.assert_array_equal(to_numpy(layer.rows(ages.astype("int32"))), expected)
    below = ages[1:] - 1
    expected = np.searchsorted(ages, below, side="right")
    np.testing.assert_array_equal(to_numpy(layer.rows(below.astype("int32"))), expected)


def test_rows_are_monotone() -> None:
    ages = np.sort(np.random.default_rng(0).integers(0, 2**31 - 1, 5000)).astype("int32")
    assert (np.diff(to_numpy(RecencyEmbedding(dim=2).rows(ages))) >= 0).all()


def test_negative_counts_as_zero_and_unknown_has_its_own_row() -> None:
    layer = RecencyEmbedding(dim=2)
    rows = layer.rows(np.array([[-(2**31), -1, 0, 600]]), np.array([[True, True, True, False]]))
    assert to_numpy(rows).tolist() == [[1, 1, 1, 0]]


def test_returns_the_rows_of_the_table() -> None:
    layer = RecencyEmbedding(dim=3, num_buckets=10)
    ages = np.array([[0, 60], [10**6, 30]], "int32")
    vectors = to_numpy(layer(ages))
    np.testing.assert_array_equal(vectors, to_numpy(layer.embeddings)[to_numpy(layer.rows(ages))])
    assert to_numpy(layer.rows(ages)).max() == 9


def test_half_precision_finds_the_same_rows() -> None:
    ages = np.array(edges(150), "int32")
    half = RecencyEmbedding(dim=2, dtype="float16")
    np.testing.assert_array_equal(
        to_numpy(half.rows(ages)), to_numpy(RecencyEmbedding(dim=2).rows(ages))
    )
    assert keras.backend.standardize_dtype(half(ages).dtype) == "float16"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RecencyEmbedding(2)(np.ones((1, 2), "float32")), "must be an integer tensor"),
        (lambda: RecencyEmbedding(2)(np.ones((1, 2), bool)), "must be an integer tensor"),
        (
            lambda: RecencyEmbedding(2)(np.ones((1, 2), "int32"), np.ones((1, 3), bool)),
            "`mask` must have shape",
        ),
        (lambda: RecencyEmbedding(0), "`dim` must be an integer of at least 1"),
        (lambda: RecencyEmbedding(2, num_buckets=1), "`num_buckets`"),
    ],
)
def test_errors_name_the_argument(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
