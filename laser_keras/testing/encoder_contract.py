"""The contract of sequence encoders, as checks that hold for any encoder."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

MakeEncoder = Callable[..., keras.layers.Layer]
_B, _N, _L, _D = 3, 4, 12, 8


def check_encoder(make: MakeEncoder, relative: float = 1e-4, seed: int = 0) -> list[str]:
    """Checks that an encoder keeps the contract of ``laser_keras.SequenceEncoder``.

    Use it in the tests of an encoder of your own. It takes a few seconds.

    Args:
        make: The encoder's class, or a function that makes one; some checks pass ``order`` or
            ``dtype``.
        relative: Largest difference that counts as equal, as a part of the largest magnitude.
        seed: Integer, of the random inputs and weights.

    Returns:
        The names of the checks, all of them passed.

    Raises:
        AssertionError: The first promise that is not kept, by the name of its check.

    Example:

    >>> from laser_keras import DINEncoder
    >>> len(check_encoder(DINEncoder)) > 5
    True
    """
    case = _Case.random(make, relative, seed)
    for name, check in _CHECKS.items():
        try:
            check(case)
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error
    return list(_CHECKS)


@dataclass(frozen=True)
class _Case:
    """Inputs, and an encoder with random weights whose answers others are compared with."""

    make: MakeEncoder
    relative: float
    target: np.ndarray
    history: np.ndarray
    mask: np.ndarray
    encoder: keras.layers.Layer

    @classmethod
    def random(cls, make: MakeEncoder, relative: float, seed: int) -> "_Case":
        rng = np.random.default_rng(seed)
        target = rng.normal(size=(_B, _N, _D)).astype("float32")
        history = rng.normal(size=(_B, _L, _D)).astype("float32")
        mask = np.arange(_L) < np.array([[_L], [5], [0]])
        encoder = make()
        encoder(target, history, mask=mask)
        for weight in encoder.trainable_weights:
            weight.assign(rng.normal(0, 0.3, weight.shape))
        return cls(make, relative, target, history, mask, encoder)

    def twin(self, **kwargs: Any) -> keras.layers.Layer:
        """A second encoder with the same weights."""
        encoder = self.make(**kwargs)
        encoder(self.target, self.history, mask=self.mask)
        encoder.set_weights(self.encoder.get_weights())
        return encoder

    def tokens(self) -> np.ndarray:
        return _numpy(self.encoder(self.target, self.history, mask=self.mask))

    def same(self, actual: Any, expected: Any, what: str) -> None:
        actual, expected = _numpy(actual), _numpy(expected)
        _require(actual.shape == expected.shape, f"shape {actual.shape}, not {expected.shape}")
        _require(bool(np.isfinite(actual).all()), f"{what}: not finite")
        bound = self.relative * max(float(np.abs(expected).max(initial=0)), 1e-6)
        difference = float(np.abs(actual - expected).max(initial=0))
        _require(difference <= bound, f"{what}: answers differ by {difference:.3g}")


def _numpy(value: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(ops.cast(value, "float32")))


def _require(held: bool, message: str) -> None:
    # No `assert`: `python -O` must check as well.
    if not held:
        raise AssertionError(message)


def _shape(case: _Case) -> None:
    expected = (_B, _N, case.encoder.num_output_tokens, _D)
    _require(case.tokens().shape == expected, f"{case.tokens().shape}, not {expected}")
    promised = tuple(case.encoder.compute_output_shape(case.target.shape, case.history.shape))
    _require(promised == expected, f"compute_output_shape tells {promised}, not {expected}")


def _candidates(case: _Case) -> None:
    together = case.tokens()
    for n in range(_N):
        one = case.encoder(case.target[:, n : n + 1], case.history, mask=case.mask)
        case.same(_numpy(one)[:, 0], together[:, n], "a candidate alone and among others")
        flat = case.encoder(case.target[:, n], case.history, mask=case.mask)
        case.same(flat, together[:, n], "a target [B, d] and [B, 1, d]")


def _users(case: _Case) -> None:
    alone = case.encoder(case.target[:1], case.history[:1], mask=case.mask[:1])
    case.same(alone, case.tokens()[:1], "a user alone and among others")


def _padding(case: _Case) -> None:
    expected = case.tokens()
    hidden = np.where(case.mask[..., None], case.history, np.float32("nan"))
    case.same(
        case.encoder(case.target, hidden, mask=case.mask), expected, "other values in the padding"
    )
    longer = np.concatenate([hidden, np.full((_B, 6, _D), np.nan, "float32")], axis=1)
    mask = np.concatenate([case.mask, np.zeros((_B, 6), bool)], axis=1)
    case.same(case.encoder(case.target, longer, mask=mask), expected, "more padding")
    everything = np.ones_like(case.mask)
    case.same(
        case.encoder(case.target, case.history),
        case.encoder(case.target, case.history, mask=everything),
        "no mask and a mask that hides nothing",
    )


def _keras_mask(case: _Case) -> None:
    zeroed = np.where(case.mask[..., None], case.history, np.float32(0))
    masked = keras.layers.Masking()(ops.convert_to_tensor(zeroed))
    case.same(case.encoder(case.target, masked), case.tokens(), "the mask that Keras passes along")


def _order(case: _Case) -> None:
    other = case.twin(order="oldest_first")
    flipped = other(case.target, case.history[:, ::-1].copy(), mask=case.mask[:, ::-1].copy())
    case.same(flipped, case.tokens(), "the same history, oldest event first")


def _empty(case: _Case) -> None:
    nothing = np.zeros_like(case.mask)
    for policy in ("float32", "mixed_float16", "mixed_bfloat16"):
        encoder = case.twin(dtype=policy)
        tokens = encoder(case.target, np.full_like(case.history, np.nan), mask=nothing)
        dtype = keras.DTypePolicy(policy).compute_dtype
        found = keras.backend.standardize_dtype(tokens.dtype)
        _require(found == dtype, f"{policy}: dtype {found}, not {dtype}")
        _require(bool(np.isfinite(_numpy(tokens)).all()), f"{policy}: not finite")


def _saving(case: _Case) -> None:
    json.dumps(keras.saving.serialize_keras_object(case.encoder))
    config = case.encoder.get_config()
    kind = type(case.encoder)
    _require(kind.from_config(config).get_config() == config, "get_config loses arguments")
    inputs = {
        "target": keras.Input((_N, _D)),
        "history": keras.Input((_L, _D)),
        "mask": keras.Input((_L,), dtype="bool"),
    }
    model = keras.Model(inputs, case.encoder(**inputs))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.keras"
        model.save(path)
        loaded = keras.saving.load_model(path, custom_objects={kind.__name__: kind})
    answers = loaded({"target": case.target, "history": case.history, "mask": case.mask})
    case.same(answers, case.tokens(), "the saved encoder and this one")


def _training(case: _Case) -> None:
    inputs = {"target": keras.Input((_N, _D)), "history": keras.Input((_L, _D))}
    encoder = case.twin()
    tokens = encoder(**inputs)
    head = keras.layers.Dense(1, kernel_initializer=keras.initializers.RandomNormal(seed=1))
    model = keras.Model(inputs, head(ops.reshape(tokens, (-1, _N, tokens.shape[2] * _D))))
    model.compile(keras.optimizers.SGD(1.0), "mse")
    before = [_numpy(weight) for weight in encoder.trainable_weights]
    model.train_on_batch(
        {"target": case.target, "history": case.history}, np.ones((_B, _N, 1), "float32")
    )
    for weight, old in zip(encoder.trainable_weights, before, strict=True):
        new = _numpy(weight)
        _require(bool(np.isfinite(new).all()), f"{weight.path}: not finite after a step")
        _require(bool((new != old).any()), f"{weight.path}: no gradient reaches it")


def _wrong_input(case: _Case) -> None:
    sound = {"target": case.target, "history": case.history, "mask": case.mask}
    wrong: tuple[tuple[str, np.ndarray], ...] = (
        ("target", case.target[0, 0]),
        ("target", case.target[..., :4]),
        ("target", case.target[:2]),
        ("history", case.history[0]),
        ("mask", case.mask.astype("float32")),
        ("mask", case.mask[:, :4]),
        ("mask", case.mask[:1]),
    )
    for name, value in wrong:
        try:
            case.encoder(**{**sound, name: value})
        except ValueError:
            continue
        raise AssertionError(f"`{name}` of shape {value.shape} and {value.dtype} was not refused")


_CHECKS: dict[str, Callable[[_Case], None]] = {
    "the shape is as promised": _shape,
    "candidates do not influence each other": _candidates,
    "users do not influence each other": _users,
    "padding never matters": _padding,
    "Keras's own mask is used": _keras_mask,
    "either order of the events will do": _order,
    "an empty history is finite in every precision": _empty,
    "saving keeps arguments and answers": _saving,
    "training reaches every weight": _training,
    "wrong input is refused": _wrong_input,
}
