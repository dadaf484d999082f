# %% [markdown]
# # An encoder of your own, and the contract's tests for free
#
# An encoder is a layer that turns candidates and a history into tokens. This one asks a simple
# question: *how like this candidate were the events of the last hours, days and weeks?* Each scale
# is an exponentially fading mean of the events, weighted by their likeness to the candidate.
#
#     python examples/custom_encoder.py

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
from keras import ops

from laser_keras import SequenceEncoder, SequenceRanker
from laser_keras.testing import check_encoder

# %% [markdown]
# ## The encoder
#
# `SequenceEncoder` checks shapes and dtypes, takes masks (also those that Keras passes along),
# histories in either order, and single candidates. `encode` sees one form only: targets
# `[B, N, d]`, the history newest first and zero where it is padded, a Boolean mask `[B, L]`. It
# returns `[B, N, num_output_tokens, d]`. Use `keras.ops`, and it runs on every backend.


# %%
@keras.saving.register_keras_serializable("examples")
class FadingEncoder(SequenceEncoder):
    """One token per scale: a mean of the events that fades with how many came since.

    Args:
        scales: Events after which an event counts a third.
        **kwargs: Arguments of ``keras.layers.Layer``, and ``order``.
    """

    def __init__(self, scales: tuple[int, ...] = (5, 50), **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.scales = tuple(scales)

    @property
    def num_output_tokens(self) -> int:
        """One per scale."""
        return len(self.scales)

    def build(self, target_shape: tuple, history_shape: tuple) -> None:
        """Create the projection that both sides of the likeness share."""
        width = target_shape[-1]
        self.project = self.add_weight(shape=(width, width), name="project")

    def encode(
        self, target: object, history: object, mask: object, training: bool | None
    ) -> object:
        """Tokens [B, N, scales, d]."""
        likeness = ops.einsum("bnd,de,ble->bnl", target, self.project, history)
        gates = ops.where(mask[:, None], ops.sigmoid(likeness), 0.0)
        place = ops.arange(history.shape[1], dtype=self.compute_dtype)
        tokens = []
        for scale in self.scales:
            weights = gates * ops.exp(-place / scale)
            # Where nothing is left there is no token. Half precision flushes anything much smaller.
            whole = ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-4)
            tokens.append(ops.einsum("bnl,ble->bne", weights / whole, history))
        return ops.stack(tokens, axis=2)

    def get_config(self) -> dict:
        """The constructor's arguments, for saving."""
        return {**super().get_config(), "scales": self.scales}


# %% [markdown]
# ## The tests
#
# What every encoder owes its user can be checked without knowing what it computes: candidates of
# one request never influence each other, padding never matters (not even NaN in it), an empty
# history is finite, the order of the arguments is as promised, a saved encoder loads with its
# answers, a gradient reaches every weight, and wrong input is named. In a test file, the one line
# is all there is to write.


# %%
def test_fading_encoder() -> list[str]:
    """Every check of the contract; returns their names."""
    return check_encoder(FadingEncoder)


# %% [markdown]
# A mistake is found and named. Here the mask is forgotten:


# %%
class ForgetfulEncoder(FadingEncoder):
    """Divides by the whole length, padding included."""

    def encode(
        self, target: object, history: object, mask: object, training: bool | None
    ) -> object:
        """The mean over everything."""
        mean = ops.mean(history, axis=1, keepdims=True)[:, :, None]
        return ops.broadcast_to(mean, (*ops.shape(target)[:2], len(self.scales), target.shape[-1]))


def main() -> str:
    """Check both encoders and rank with the sound one; returns what the other's mistake is."""
    print(f"FadingEncoder: {', '.join(test_fading_encoder())}")
    try:
        check_encoder(ForgetfulEncoder)
    except AssertionError as error:
        mistake = str(error).splitlines()[0]
    else:
        raise AssertionError("a forgotten mask was not noticed")
    print(f"ForgetfulEncoder: {mistake}")

    # A ranker takes it as it takes any of the house's own.
    ranker = SequenceRanker(FadingEncoder(), dim=16, num_tokens=4, mixer_dim=32, recency="none")
    inputs = {
        "history": np.ones((2, 60, 24), "float32"),
        "history_mask": np.ones((2, 60), bool),
        "target": np.ones((2, 3, 20), "float32"),
    }
    print(f"scores: {tuple(ranker(inputs).shape)}")
    return mistake


# %%
if __name__ == "__main__":
    main()
