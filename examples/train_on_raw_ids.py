# %% [markdown]
# # From raw ids to a trained LASER ranker
#
# A log of movie ratings, a layer that embeds raw ids, and plain `keras.Model.fit`. Nothing else of
# this repository is needed: `pip install laser-ranking` and one Keras backend.
#
#     python examples/train_on_raw_ids.py [FOLDER with MovieLens's ratings.csv]

# %%
import os
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # or jax, or torch

import keras
from movie_log import Log, Part, read_log, requests_of, split_by_time

from laser_keras import LaserRanker

# %% [markdown]
# ## The data
#
# Each request: up to 50 earlier ratings of the user, newest first, and one candidate.


# %%
@keras.saving.register_keras_serializable("examples")
class MovieEmbedding(keras.layers.Layer):
    """Turns raw ids into what a ranker takes; history and candidate share their tables."""

    def __init__(self, movies: int, genres: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.movies, self.genres = movies, genres
        self.movie = keras.layers.Embedding(movies, 16)
        self.genre = keras.layers.Embedding(genres, 8)
        self.stars = keras.layers.Embedding(11, 8)  # half stars; 0 is padding

    def call(self, raw: dict) -> dict:
        """``history`` [B, L, e], its mask and ages [B, L], ``target`` [B, N, e]."""
        history, target = (
            [self.movie(raw[f"{side}_movie"]), self.genre(raw[f"{side}_genre"])]
            for side in ("history", "candidate")
        )
        history.append(self.stars(raw["history_stars"]))
        return {
            "history": keras.ops.concatenate(history, axis=-1),
            "history_mask": raw["history_movie"] > 0,
            "history_age": raw["history_age"],
            "target": keras.ops.concatenate(target, axis=-1),
        }

    def get_config(self) -> dict:
        """The constructor's arguments, so that a saved ranker finds its embedding again."""
        return {**super().get_config(), "movies": self.movies, "genres": self.genres}


# %% [markdown]
# ## The model
#
# `LaserRanker` is tokenizer, LASER encoder, RankMixer and click head. Everything that is smaller
# here than by default is so because the log is small.


# %%
def make_ranker(log: Log) -> LaserRanker:
    """An untrained ranker for a small log."""
    return LaserRanker(
        dim=32,
        num_recent_segments=2,
        num_tokens=8,
        mixer_dim=32,
        mixer_blocks=1,
        embedding=MovieEmbedding(log.movies, log.genres),
    )


def train(ranker: keras.Model, part: Part, epochs: int = 4) -> None:
    """Nothing but Keras."""
    auc = keras.metrics.AUC(name="auc")
    ranker.compile(
        keras.optimizers.Adam(5e-3),
        "binary_crossentropy",
        metrics=[auc],
        # XLA takes longer to compile than TensorFlow to learn from a log this small; JAX needs it.
        jit_compile=keras.backend.backend() == "jax",
    )
    ranker.fit(*part, epochs=epochs, batch_size=128, verbose=0)


def main(folder: str | None = None) -> float:
    """Train and judge; returns the AUC on the newest fifth of the log."""
    keras.utils.set_random_seed(1)
    log = read_log(folder)
    learn_from, judge_by = split_by_time(log, *requests_of(log))
    print(f"{len(learn_from[1]):,} requests to learn from, {len(judge_by[1]):,} to judge by")

    ranker = make_ranker(log)
    train(ranker, learn_from)
    auc = ranker.evaluate(*judge_by, batch_size=512, verbose=0, return_dict=True)["auc"]
    print(f"AUC on the newest fifth: {auc:.3f} (a guess: 0.5)")
    return auc


# %% [markdown]
# ## What comes next
#
# * the same with DIN or HSTU in LASER's place: `compare_encoders.py`
# * the trained ranker behind a REST interface: `export_and_serve.py`
# * which past events it looked at: `gates.py`

# %%
if __name__ == "__main__":
    main(*sys.argv[1:2])
