# %% [markdown]
# # The same layers on TensorFlow, JAX and PyTorch
#
# The backend is chosen before Python starts; no other line changes:
#
#     KERAS_BACKEND=torch python examples/any_backend.py
#
# `fit` works on all of them. If you have a training loop of your own, a layer is what your
# framework expects: a function of its weights on JAX, a `torch.nn.Module` on PyTorch.

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

from laser_keras import LaserEncoder

BACKEND = keras.backend.backend()
STEPS = 30

# %% [markdown]
# ## A task
#
# Does the candidate look like something of long ago in the history?


# %%
def task(requests: int = 64, length: int = 60, width: int = 16) -> tuple[dict, np.ndarray]:
    """Inputs of an encoder, and labels [B, 1]."""
    rng = np.random.default_rng(0)
    history = rng.normal(size=(requests, length, width)).astype("float32")
    target = rng.normal(size=(requests, 1, width)).astype("float32")
    labels = rng.integers(0, 2, (requests, 1)).astype("float32")
    history[labels[:, 0] == 1, 40:45] = target[labels[:, 0] == 1]
    return {"target": target, "history": history}, labels


def make_scorer(inputs: dict) -> keras.Model:
    """An encoder and a head, with any number of candidates."""
    placeholders = {
        "target": keras.Input((None, inputs["target"].shape[-1]), name="target"),
        "history": keras.Input(inputs["history"].shape[1:], name="history"),
    }
    tokens = LaserEncoder(num_recent_segments=2)(**placeholders)
    mean = keras.ops.mean(tokens, axis=-2)
    return keras.Model(placeholders, keras.layers.Dense(1)(mean)[..., 0])


# %% [markdown]
# ## JAX
#
# `stateless_call` is a pure function of the weights: jit it, differentiate it, shard it.


# %%
def train_with_jax(model: keras.Model, inputs: dict, labels: np.ndarray) -> list[float]:
    """Plain gradient descent in JAX; returns the losses."""
    import jax

    fixed = [variable.value for variable in model.non_trainable_variables]

    def loss_of(weights: list) -> jax.Array:
        logits, _ = model.stateless_call(weights, fixed, inputs, training=True)
        return keras.ops.mean(keras.losses.binary_crossentropy(labels, logits, from_logits=True))

    step = jax.jit(jax.value_and_grad(loss_of))
    weights, losses = [variable.value for variable in model.trainable_variables], []
    for _ in range(STEPS):
        loss, slopes = step(weights)
        weights = [w - 0.1 * slope for w, slope in zip(weights, slopes, strict=True)]
        losses.append(float(loss))
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)
    return losses


# %% [markdown]
# ## PyTorch
#
# A Keras model is a `torch.nn.Module`: `parameters()` go to any optimiser of PyTorch's.


# %%
def train_with_torch(model: keras.Model, inputs: dict, labels: np.ndarray) -> list[float]:
    """A training loop as PyTorch users write it; returns the losses."""
    import torch

    device = next(model.parameters()).device
    tensors = {name: torch.as_tensor(value, device=device) for name, value in inputs.items()}
    expected = torch.as_tensor(labels, device=device)
    optimiser, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(STEPS):
        optimiser.zero_grad()
        logits = model(tensors, training=True)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, expected)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# ## Keras, on any of them


# %%
def train_with_keras(model: keras.Model, inputs: dict, labels: np.ndarray) -> list[float]:
    """The same steps by ``fit``; returns the losses."""
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    history = model.fit(inputs, labels, epochs=STEPS, batch_size=len(labels), verbose=0)
    return history.history["loss"]


def main() -> dict[str, list[float]]:
    """Train from the same weights by every way that this backend has; returns the losses."""
    inputs, labels = task()
    ways = {"keras": train_with_keras}
    if BACKEND == "jax":
        ways["jax"] = train_with_jax
    if BACKEND == "torch":
        ways["torch"] = train_with_torch
    losses = {}
    for name, train in ways.items():
        keras.utils.set_random_seed(3)
        losses[name] = train(make_scorer(inputs), inputs, labels)
        print(f"{name:5} on {BACKEND}: loss {losses[name][0]:.4f} -> {losses[name][-1]:.4f}")
    return losses


# %%
if __name__ == "__main__":
    main()
