# %% [markdown]
# # From a rating log to arrays
#
# The other examples import this file. A log has four columns: who, what, how much they liked it,
# when. Ranking asks of every line: *knowing only what came before, will they like it?* So each
# rating becomes one request, and its history is what the same user rated strictly earlier.
#
# Give a folder with MovieLens's `ratings.csv` and `movies.csv` (any of the published sizes; start
# with `ml-latest-small`), or none: then a small log is generated. In it, some films are better than
# others, and every viewer likes two of six genres, which only their own ratings tell.

# %%
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LIKED = 4.0
"""A rating of at least this many stars is a click."""


# %% [markdown]
# ## The log
#
# Sorted by user, and by time within a user. Movies and genres are numbered from 1: 0 is kept for
# padding and for what is not known.


# %%
@dataclass(frozen=True)
class Log:
    """Ratings sorted by (user, time); every field has one value per rating."""

    user: np.ndarray
    movie: np.ndarray
    genre: np.ndarray
    """The first that MovieLens lists for the movie."""
    stars: np.ndarray
    time: np.ndarray
    """Seconds."""

    @property
    def movies(self) -> int:
        """Rows that an embedding of the movies needs, row 0 included."""
        return int(self.movie.max()) + 1

    @property
    def genres(self) -> int:
        """Rows that an embedding of the genres needs, row 0 included."""
        return int(self.genre.max()) + 1


def read_log(folder: str | Path | None = None) -> Log:
    """MovieLens's ratings from a folder, or a generated log of the same form."""
    user, movie, genre, stars, time = _generate() if folder is None else _read(Path(folder))
    order = np.lexsort((time, user))
    movie, genre = (
        np.unique(ids, return_inverse=True)[1].astype("int32") + 1 for ids in (movie, genre)
    )
    return Log(user[order], movie[order], genre[order], stars[order], time[order])


def _read(folder: Path) -> tuple[np.ndarray, ...]:
    with open(folder / "movies.csv", newline="", encoding="utf-8") as file:
        genre_of = {row["movieId"]: row["genres"].split("|")[0] for row in csv.DictReader(file)}
    with open(folder / "ratings.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return (
        np.array([int(row["userId"]) for row in rows]),
        np.array([int(row["movieId"]) for row in rows]),
        np.array([genre_of.get(row["movieId"], "") for row in rows]),
        np.array([float(row["rating"]) for row in rows]),
        np.array([int(row["timestamp"]) for row in rows]),
    )


def _generate(users: int = 200, movies: int = 90, genres: int = 6) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(7)
    counts = rng.integers(20, 100, users)
    user = np.repeat(np.arange(users), counts)
    movie = rng.integers(0, movies, len(user))
    genre = movie % genres
    favourites = np.array([rng.permutation(genres)[:2] for _ in range(users)])
    is_favourite = (genre[:, None] == favourites[user]).any(1)
    good = rng.normal(size=movies)[movie]
    liked = rng.random(len(user)) < 1 / (1 + np.exp(-(good + np.where(is_favourite, 1.5, -1.5))))
    stars = np.where(liked, 4.0, 2.0) + rng.integers(0, 3, len(user)) / 2
    time = 1_000_000_000 + rng.integers(0, 90 * 86_400, len(user))
    return user, movie, genre, stars, time


# %% [markdown]
# ## Requests
#
# Nothing is copied per user in Python: position `p` of the sorted log has its history at
# `p - 1, p - 2, ...`, newest first, until the user's first line. Ratings of the same second are not
# history of one another: a model in production could not have seen them.


# %%
def requests_of(log: Log, length: int = 50) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One request with one candidate per rating: a ranker's raw inputs, and the labels [R, 1]."""
    position = np.arange(len(log.user))
    new_user = np.r_[True, log.user[1:] != log.user[:-1]]
    new_moment = new_user | np.r_[True, log.time[1:] != log.time[:-1]]
    first = np.maximum.accumulate(np.where(new_user, position, 0))
    now = np.maximum.accumulate(np.where(new_moment, position, 0))

    events = now[:, None] - 1 - np.arange(length)  # newest first
    valid = events >= first[:, None]
    events = np.where(valid, events, 0)
    raw = {
        "history_movie": np.where(valid, log.movie[events], 0).astype("int32"),
        "history_genre": np.where(valid, log.genre[events], 0).astype("int32"),
        "history_stars": np.where(valid, log.stars[events] * 2, 0).astype("int32"),
        "history_age": np.where(valid, log.time[:, None] - log.time[events], 0).astype("int32"),
        "candidate_movie": log.movie[:, None].astype("int32"),
        "candidate_genre": log.genre[:, None].astype("int32"),
    }
    return raw, (log.stars >= LIKED).astype("float32")[:, None]


Part = tuple[dict[str, np.ndarray], np.ndarray]


def split_by_time(
    log: Log, raw: dict[str, np.ndarray], labels: np.ndarray, share: float = 0.8
) -> tuple[Part, Part]:
    """The oldest part to learn from, the newest to judge by: never the other way round."""
    old = log.time <= np.quantile(log.time, share)
    train, test = (
        ({name: values[chosen] for name, values in raw.items()}, labels[chosen])
        for chosen in (old, ~old)
    )
    return train, test
