"""The tutorials that need a Keras backend alone run, and show what they say they show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

Load = Callable[[str], dict[str, Any]]

# The short check runs these where Keras is fastest, `make test-layers` on every backend.
short_on_torch = pytest.mark.long if keras.backend.backend() != "torch" else lambda test: test


def test_a_history_is_what_came_strictly_before(load: Load) -> None:
    movie_log = load("movie_log")
    log = movie_log["Log"](
        user=np.array([1, 1, 1, 2]),
        movie=np.array([5, 6, 7, 5]),
        genre=np.array([1, 1, 2, 1]),
        stars=np.array([4.0, 3.5, 5.0, 1.0]),
        time=np.array([10, 20, 20, 30]),
    )
    raw, labels = movie_log["requests_of"](log, length=3)
    # The two ratings of second 20 do not see each other; nobody sees another user's.
    assert raw["history_movie"].tolist() == [[0, 0, 0], [5, 0, 0], [5, 0, 0], [0, 0, 0]]
    assert raw["history_age"].tolist() == [[0, 0, 0], [10, 0, 0], [10, 0, 0], [0, 0, 0]]
    assert raw["history_stars"].tolist() == [[0, 0, 0], [8, 0, 0], [8, 0, 0], [0, 0, 0]]
    assert raw["candidate_movie"].tolist() == [[5], [6], [7], [5]]
    assert labels.ravel().tolist() == [1, 0, 1, 0]


def test_movielens_files_are_read(load: Load, tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n2,50,4.0,30\n1,50,3.0,20\n1,70,5.0,10\n"
    )
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n50,"A film, with commas (1999)",Drama|War\n70,Another,Comedy\n'
    )
    log = load("movie_log")["read_log"](tmp_path)
    assert log.user.tolist() == [1, 1, 2]
    assert log.movie.tolist() == [2, 1, 1]
    assert log.genre.tolist() == [1, 2, 2]
    assert (log.movies, log.genres) == (3, 3)


def test_raw_ids_to_a_trained_ranker(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    auc = load("train_on_raw_ids")["main"]()
    assert 0.6 < auc < 1
    assert "AUC on the newest fifth" in capsys.readouterr().out


@short_on_torch
def test_encoders_are_swapped_by_one_line(load: Load) -> None:
    movie_log, main = load("movie_log"), load("compare_encoders")["main"]
    log = movie_log["read_log"]()
    few = log.user < 30  # enough to run every line of two trainings
    small = movie_log["Log"](*(values[few] for values in vars(log).values()))
    main.__globals__["read_log"] = lambda folder: small
    encoders = main.__globals__["ENCODERS"]
    assert list(encoders) == ["LASER", "DIN", "HSTU", "mean"]
    for slow in ("LASER", "HSTU"):  # every encoder is trained in tests of its own
        del encoders[slow]
    found = main(epochs=1)
    assert list(found) == ["DIN", "mean"]
    assert all(0 < auc < 1 for auc in found.values())


@short_on_torch
def test_gates_open_for_the_planted_causes(load: Load, tmp_path: Path) -> None:
    picture = tmp_path / "gates.svg"
    of_causes, of_others = load("gates")["main"](str(picture))
    assert 2 * of_others < of_causes < 1
    assert picture.read_text().count("<rect") > 40


def test_a_custom_encoder_gets_the_contracts_tests(load: Load) -> None:
    assert load("custom_encoder")["main"]().startswith("padding never matters")


def test_every_way_of_training_on_this_backend_learns(load: Load) -> None:
    """`make test-layers` runs this on PyTorch and on JAX."""
    losses = load("any_backend")["main"]()
    assert set(losses) == {"keras", keras.backend.backend()} - {"tensorflow"} | {"keras"}
    for name, values in losses.items():
        assert values[-1] < 0.8 * values[0], name
        assert values[0] == pytest.approx(losses["keras"][0], rel=1e-4)
        assert values[-1] == pytest.approx(losses["keras"][-1], rel=1e-2)
