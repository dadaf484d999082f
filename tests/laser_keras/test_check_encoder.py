"""The checks that users run on their own encoders pass sound ones and find each kind of mistake."""

import keras
import pytest
from keras import ops

from laser_keras import DINEncoder, LaserEncoder, SequenceEncoder
from laser_keras.testing import check_encoder


class Sound(SequenceEncoder):
    """Events by their likeness to the target, gated; its children each make one mistake."""

    def build(self, target_shape, history_shape):
        self.kernel = self.add_weight(shape=(target_shape[-1], target_shape[-1]), name="kernel")

    def gates(self, target, history, mask):
        likeness = ops.einsum("bnd,de,ble->bnl", target, self.kernel, history)
        return ops.where(mask[:, None], ops.sigmoid(likeness), ops.zeros_like(likeness))

    def encode(self, target, history, mask, training):
        return ops.einsum("bnl,ble->bne", self.gates(target, history, mask), history)[:, :, None]


class MixesCandidates(Sound):
    def encode(self, target, history, mask, training):
        return super().encode(target - ops.mean(target, 1, keepdims=True), history, mask, training)


class MixesUsers(Sound):
    def encode(self, target, history, mask, training):
        tokens = super().encode(target, history, mask, training)
        return tokens - ops.mean(tokens, axis=0, keepdims=True)


class CountsPadding(Sound):
    def encode(self, target, history, mask, training):
        return super().encode(target, history, mask, training) / history.shape[1]


class LeaksNaN(Sound):
    def call(self, target, history, mask=None, training=None):
        tokens = super().call(target, history, mask, training)
        return tokens + 0 * ops.mean(history)


class DividesByNothing(Sound):
    def encode(self, target, history, mask, training):
        gates = self.gates(target, history, mask)
        whole = ops.sum(gates, axis=-1, keepdims=True)
        return (ops.einsum("bnl,ble->bne", gates, history) / (whole - whole * 0 - 0))[:, :, None]


class LosesArguments(Sound):
    def __init__(self, scale=2.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def encode(self, target, history, mask, training):
        return super().encode(target, history, mask, training) * self.scale


class HasDeadWeight(Sound):
    def build(self, target_shape, history_shape):
        super().build(target_shape, history_shape)
        self.dead = self.add_weight(shape=(3,), name="dead")

    def encode(self, target, history, mask, training):
        return super().encode(target, history, mask, training) + 0 * ops.sum(self.dead)


class TakesAnything(Sound):
    def call(self, target, history, mask=None, training=None):
        if mask is not None and not hasattr(mask, "dtype"):
            mask = ops.convert_to_tensor(mask)
        return super().call(target, history, None if mask is None else ops.cast(mask, "bool"))


class PromisesAnotherShape(Sound):
    @property
    def num_output_tokens(self):
        return 2


def scaled(**kwargs):
    return LosesArguments(scale=3.0, **kwargs)


@pytest.mark.parametrize(
    "make", [Sound, DINEncoder, lambda **k: LaserEncoder(num_recent_segments=2, **k)]
)
def test_a_sound_encoder_passes_every_check(make) -> None:
    assert len(check_encoder(make)) == 10


@pytest.mark.parametrize(
    ("make", "promise"),
    [
        (MixesCandidates, "candidates do not influence each other"),
        (MixesUsers, "users do not influence each other"),
        (CountsPadding, "padding never matters: more padding"),
        (LeaksNaN, "padding never matters: other values in the padding: not finite"),
        (DividesByNothing, "not finite"),
        (scaled, "saving keeps arguments and answers"),
        (HasDeadWeight, "training reaches every weight: .*dead: no gradient"),
        (TakesAnything, "wrong input is refused: `mask`"),
        (PromisesAnotherShape, "the shape is as promised"),
    ],
)
def test_a_mistake_is_named(make, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_encoder(make)


def test_the_global_state_of_keras_is_left_as_it_was() -> None:
    before = keras.config.dtype_policy().name
    check_encoder(Sound)
    assert keras.config.dtype_policy().name == before
