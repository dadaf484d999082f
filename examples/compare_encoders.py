# %% [markdown]
# # Another encoder is one line
#
# `SequenceRanker` is the model of `train_on_raw_ids.py` around any encoder. Here LASER, DIN, HSTU
# and the plain mean of the history learn from the same log, with the same embedding, head and seed.
#
#     python examples/compare_encoders.py [FOLDER with MovieLens's ratings.csv]
#
# On a log this small the order of the systems says little. What to look at is how little changes
# between them; measurements that mean something are in `benchmarks/`.

# %%
import os
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
from movie_log import read_log, requests_of, split_by_time
from train_on_raw_ids import MovieEmbedding, train

from laser_keras import DINEncoder, HSTUEncoder, LaserEncoder, PoolingEncoder, SequenceRanker

# %% [markdown]
# ## The one line
#
# All encoders are called alike, `encoder(target, history, mask=...)`, and say by
# `num_output_tokens` how many tokens they give. HSTU also takes the events' ages; the ranker hands
# them to an encoder that asks.

# %%
ENCODERS = {
    "LASER": lambda: LaserEncoder(num_recent_segments=2),
    "DIN": lambda: DINEncoder(),
    "HSTU": lambda: HSTUEncoder(num_layers=2, normalizer="length"),
    "mean": lambda: PoolingEncoder(),
}


def main(folder: str | None = None, epochs: int = 3) -> dict[str, float]:
    """Train each; returns the AUC on the newest fifth of the log by system."""
    log = read_log(folder)
    learn_from, judge_by = split_by_time(log, *requests_of(log))
    found = {}
    print(f"{'encoder':8} {'tokens':>6} {'weights':>8} {'AUC':>6} {'seconds':>8}")
    for name, make_encoder in ENCODERS.items():
        keras.utils.set_random_seed(1)
        encoder = make_encoder()
        ranker = SequenceRanker(
            encoder,
            dim=32,
            num_tokens=8,
            mixer_dim=32,
            mixer_blocks=1,
            embedding=MovieEmbedding(log.movies, log.genres),
        )
        started = time.perf_counter()
        train(ranker, learn_from, epochs)
        seconds = time.perf_counter() - started
        scores = ranker.evaluate(*judge_by, batch_size=512, verbose=0, return_dict=True)
        found[name] = scores["auc"]
        weights = sum(int(keras.ops.size(weight)) for weight in encoder.weights)
        tokens = encoder.num_output_tokens
        print(f"{name:8} {tokens:6} {weights:8,} {found[name]:6.3f} {seconds:8.1f}")
    return found


# %%
if __name__ == "__main__":
    main(*sys.argv[1:2])
