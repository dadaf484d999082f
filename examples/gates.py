# %% [markdown]
# # Which past events opened the gates?
#
# LASER sums segments of the history with every event *gated by the candidate*: a number between 0
# and 1 per event and head. After training the gates say what a score looked at. `return_gates=True`
# hands them out beside the scores.
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
from movie_log import read_log, requests_of, split_by_time
from train_on_raw_ids import make_ranker, train

# %% [markdown]
# ## A picture of one history
#
# A bar per event, newest on the left; the dark ones share the candidate's genre. Stripes mark the
# segments of ten events that are summed into one token. Gates start nearly closed, so the height is
# that of the widest.


# %%
def draw(gates: np.ndarray, same_genre: np.ndarray, segment: int = 10) -> str:
    """An SVG of gates [events] in [0, 1]."""
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
            f'height="{size}" fill="{"#1d4ed8" if same_genre[place] else "#94a3b8"}"/>'
        )
    parts.append(
        f'<text x="4" y="{top + 8}">{widest:.2f}</text><text x="10" y="{top + height}">0</text>'
        f'<text x="{left}" y="{top + height + 20}">newest</text>'
        f'<text x="{right}" y="{top + height + 20}" text-anchor="end">oldest</text></svg>'
    )
    return "\n".join(parts) + "\n"


def main(picture: str = "gates.svg", epochs: int = 4) -> tuple[float, float]:
    """Train and draw; returns the mean gate of events of the candidate's genre, and of others."""
    keras.utils.set_random_seed(1)
    log = read_log()
    learn_from, (raw, _) = split_by_time(log, *requests_of(log))
    ranker = make_ranker(log)
    train(ranker, learn_from, epochs)

    found = ranker(raw, return_gates=True)
    gates = keras.ops.convert_to_numpy(found["gates"])[:, 0].mean(axis=1)  # [requests, events]
    valid = raw["history_genre"] > 0
    same = valid & (raw["history_genre"] == raw["candidate_genre"])
    averages = float(gates[same].mean()), float(gates[valid & ~same].mean())
    print("mean gate of the candidate's genre: {:.3f}, of others: {:.3f}".format(*averages))

    fullest = int(valid.sum(axis=1).argmax())
    with open(picture, "w", encoding="utf-8") as file:
        file.write(draw(gates[fullest], same[fullest]))
    print(f"wrote {picture}")
    return averages


# %% [markdown]
# The gates of the paper's layer are drawn in `docs/layers/gates.svg`, and how they are computed
# stands in `docs/layers/segmented_target_attention.md`.

# %%
if __name__ == "__main__":
    main(*sys.argv[1:2])
