# %% [markdown]
# # Which past events opened the gates?
#
# LASER sums segments of the history with every event *gated by the candidate*: a number between 0
# and 1 per event and head. After training the gates say what a score looked at. `return_gates=True`
# returns them beside the scores.
#
#     python examples/gates.py [PICTURE.svg]
#
# Read them as what they are: how much of an event came in, not whether it spoke for or against.

# %%
import os
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

from laser_keras import FeatureEmbedding, LaserRanker

TOPICS = 12
NOISE = 0.1

# %% [markdown]
# ## A log whose causes are known
#
# Every viewer likes some topics and dislikes the others, each with probability one half. Whether
# they finished a film shows it, up to a tenth of noise. So one thing tells whether they will finish
# a film of topic 7: what they did with films of topic 7. All other events say nothing.


# %%
def requests(
    viewers: int, seed: int, length: int = 40, candidates: int = 8
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One request per viewer: raw inputs of a ranker, and labels [viewers, candidates]."""
    rng = np.random.default_rng(seed)
    likes = rng.random((viewers, TOPICS + 1)) < 0.5

    def watch(count: int) -> tuple[np.ndarray, np.ndarray]:
        topic = rng.integers(1, TOPICS + 1, (viewers, count))
        noise = rng.random((viewers, count)) < NOISE
        return topic.astype("int32"), np.take_along_axis(likes, topic, axis=1) ^ noise

    (topic, finished), (candidate, labels) = watch(length), watch(candidates)
    raw = {
        "history_topic": topic,
        "history_action": np.where(finished, 2, 1).astype("int32"),  # 0 is padding
        "candidate_topic": candidate,
    }
    return raw, labels.astype("float32")


# %% [markdown]
# ## The ranker
#
# `shared_width` says that the first eight columns of a history's events and of a candidate are the
# same feature, the topic. Both then start with equal projections, so that gates start as
# similarities: the ranker need not find that out.


# %%
def make_ranker() -> LaserRanker:
    """An untrained ranker."""
    start = keras.initializers.RandomNormal(stddev=0.3, seed=1)
    tables = {"topic": (TOPICS + 1, 8), "action": (3, 8)}
    return LaserRanker(
        dim=16,
        recency="none",
        shared_width=8,
        num_recent_segments=1,
        num_tokens=4,
        mixer_dim=32,
        mixer_blocks=1,
        embedding=FeatureEmbedding(tables, embeddings_initializer=start),
    )


# %% [markdown]
# ## A picture of one history
#
# A bar per event, newest on the left; the dark ones share the candidate's topic. Stripes mark the
# segments of ten events that are summed into one token.


# %%
def draw(gates: np.ndarray, causes: np.ndarray, segment: int = 10) -> str:
    """An SVG of gates [events] in [0, 1]; the causes are dark."""
    bar, height, left, top = 12, 140, 36, 28
    right, widest = left + bar * len(gates), max(float(gates.max()), 1e-6)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 10} {top + height + 30}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="16">how far each past event opens its gate for this candidate</text>',
    ]
    for start in range(0, len(gates), 2 * segment):
        width = bar * min(segment, len(gates) - start)
        parts.append(
            f'<rect x="{left + bar * start}" y="{top}" width="{width}" height="{height}" '
            'fill="#eef2f7"/>'
        )
    for place, gate in enumerate(gates):
        size = round(float(gate) / widest * height, 1)
        parts.append(
            f'<rect x="{left + bar * place + 1}" y="{top + height - size}" width="{bar - 2}" '
            f'height="{size}" fill="{"#1d4ed8" if causes[place] else "#94a3b8"}"/>'
        )
    parts.append(
        f'<text x="4" y="{top + 8}">{widest:.2f}</text><text x="10" y="{top + height}">0</text>'
        f'<text x="{left}" y="{top + height + 20}">newest</text>'
        f'<text x="{right}" y="{top + height + 20}" text-anchor="end">oldest</text></svg>'
    )
    return "\n".join(parts) + "\n"


def main(picture: str = "gates.svg", epochs: int = 15) -> tuple[float, float]:
    """Train and draw; returns the mean gate of events of the candidate's topic, and of others."""
    keras.utils.set_random_seed(1)
    ranker = make_ranker()
    auc = keras.metrics.AUC(name="auc")
    optimizer = keras.optimizers.Adam(5e-3)
    ranker.compile(
        optimizer,
        "binary_crossentropy",
        metrics=[auc],
        jit_compile=keras.backend.backend() == "jax",  # elsewhere it takes longer than learning
    )
    ranker.fit(*requests(800, seed=1), epochs=epochs, batch_size=32, verbose=0)

    raw, labels = requests(200, seed=2)
    judged = ranker.evaluate(raw, labels, verbose=0, return_dict=True)["auc"]
    print(f"AUC on viewers that the ranker has not seen: {judged:.3f} (a guess: 0.5)")

    found = ranker(raw, return_gates=True)
    gates = keras.ops.convert_to_numpy(found["gates"]).mean(axis=2)  # [viewers, candidates, events]
    same = raw["history_topic"][:, None, :] == raw["candidate_topic"][:, :, None]
    averages = float(gates[same].mean()), float(gates[~same].mean())
    print("mean gate of the candidate's topic: {:.3f}, of others: {:.3f}".format(*averages))

    chosen = np.unravel_index(same.sum(axis=-1).argmax(), same.shape[:2])
    with open(picture, "w", encoding="utf-8") as file:
        file.write(draw(gates[chosen], same[chosen]))
    print(f"wrote {picture}")
    return averages


# %% [markdown]
# ## What the picture shows
#
# The gates of the candidate's own topic are open, those of other topics nearly closed: the ranker
# has found the cause. How gates are computed is in `docs/layers/segmented_target_attention.md`; for
# logs of thousands of events with planted causes see `laser-pipeline prepare --preset long`.

# %%
if __name__ == "__main__":
    main(*sys.argv[1:2])
