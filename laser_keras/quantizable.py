"""Layers and models whose kernels `quantize` turns into integers of 8 bits."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

_LARGEST = 127  # -128 is left out: it would have no opposite


class Quantizable:
    """Base of what ``quantize("int8")`` reaches: each kernel becomes int8 with float scales.

    As in Keras, the dtype policy then says so ("int8_from_float32"), it is part of the
    configuration, and a layer made with such a policy has int8 kernels from the start, for a saved
    file to fill. Unlike ``keras.layers.Dense``, only weights are rounded, never activations.

    Subclasses hand ``dtype_policy`` to the quantisable layers inside them, and ``float_policy`` to
    all others.
    """

    @property
    def float_policy(self) -> Any:
        """The dtype policy for layers inside that have no kernels: never a quantised one."""
        policy = self.dtype_policy  # type: ignore[attr-defined]
        if policy.quantization_mode is None:
            return policy
        return keras.dtype_policies.get(policy.get_config()["source_name"])

    def quantize(self, mode: str, type_check: bool = True, config: Any = None) -> None:
        """Store the kernels of this layer and of those inside it as int8, a quarter of float32.

        A kernel becomes integers and one float scale per output channel (and token, where tokens
        have kernels of their own), multiplied together again in each call: for the size of
        files and weights, not for speed. No number moves by more than half its scale, which is
        1/127 of the largest in its channel. Kernels are no longer trained; biases, norms and the
        factors of ``enable_lora``, before or after this, still are. Compile a model again before
        further training.

        Layers inside that are not of this package stay as they are.

        Args:
            mode: ``"int8"``.
            type_check: Ignored; Keras passes it.
            config: None; newer versions of Keras pass theirs, which may not bring a
                ``weight_quantizer``.

        Raises:
            ValueError: before the layer is built, when called twice, for another mode, and under
                a float16 policy (Keras has no int8 policy of it).
            NotImplementedError: where there is no kernel; Keras then passes the layer by.

        Example:

        >>> from laser_keras import FeedForward
        >>> layer = FeedForward()
        >>> layer.build((None, 8))
        >>> layer.quantize("int8")
        >>> layer.hidden_kernel.dtype, layer.dtype_policy.name
        ('int8', 'int8_from_float32')
        """
        owner = self.name  # type: ignore[attr-defined]
        if getattr(config, "weight_quantizer", None) is not None:
            raise ValueError(
                f"{owner}: `config` must not have a `weight_quantizer`: kernels are rounded in one "
                f"way. Received: {config.weight_quantizer!r}"
            )
        if not _has_kernels(self):
            raise NotImplementedError(
                f"{owner}: `quantize` reaches no kernel of this layer. "
                f"Received: a {type(self).__name__}"
            )
        reached = [layer for layer in _reached(self) if _has_kernels(layer)]
        for layer in reached:  # all of them before the first is changed
            layer._check_kernels()
            if layer.compute_dtype == "float16":
                owner = layer.name
                raise ValueError(
                    f"{owner}: `quantize` needs a policy that computes in float32 or "
                    f"bfloat16. Received: {layer.dtype_policy.name}"
                )
        for layer in reached:
            if layer.quantization_mode is None:  # it may have been quantised by itself
                layer._quantize_kernels()
                layer._is_quantized = True
                source = layer.dtype_policy.name
                layer.dtype_policy = keras.dtype_policies.QuantizedDTypePolicy(mode, source)
        if keras.backend.backend() == "torch":
            for layer in reached:  # a module also holds what the modules inside it had
                layer._track_variables()

    def _check_quantize_args(self, mode: Any, compute_dtype: str) -> None:
        # Keras calls this before every `quantize`.
        layer: Any = self
        owner = layer.name
        if mode != "int8":
            raise ValueError(f"{owner}: `mode` must be 'int8'. Received: {mode!r}")
        if not layer.built or layer.quantization_mode is not None:
            state = "of int8 already" if layer.built else "not built"
            raise ValueError(
                f"{owner}: `quantize` must be called once, after the layer is built. "
                f"Received: a layer {state}"
            )

    def _own_kernels(self) -> list[Any]:
        return []

    def _check_kernels(self) -> None:
        """Refuse kernels that the layer does not multiply by as ``effective`` gives them."""

    def _quantize_kernels(self) -> None:
        """Turn the kernels of this layer itself to int8."""

    def _saved_apart(self) -> list[Any]:
        """The layers inside whose own configuration is part of this one's."""
        return []

    def _int8_call(self, *args: Any, **kwargs: Any) -> Any:
        # What Keras calls in place of `call` under a quantised policy.
        return self.call(*args, **kwargs)  # type: ignore[attr-defined]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        whole: Any = self
        owner = whole.name
        for layer in _reached(self, apart=False):
            if layer.quantization_mode is not None and whole.quantization_mode is None:
                raise ValueError(
                    f"{owner}: the configuration cannot say that only a part is quantised. "
                    f"Call `quantize` of the whole layer. Received: int8 in {layer.name}"
                )
        return super().get_config()  # type: ignore[misc, no-any-return]


def int8_kernel(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers [..., a, b] and scales [..., 1, b] whose product is nearest to ``kernel``.

    >>> values, scales = int8_kernel(np.array([[127.0, 0.5], [-1.6, 0.25]]))
    >>> values.tolist(), (scales * 254).round(6).tolist()
    ([[127, 127], [-2, 64]], [[254.0, 1.0]])
    """
    kernel = kernel.astype(np.result_type(kernel.dtype, "float32"), copy=False)
    scales = np.max(np.abs(kernel), axis=-2, keepdims=True) / _LARGEST
    # Channels of zeros, or of numbers too small to be divided by, are zero.
    usable = scales > np.finfo(kernel.dtype).tiny
    steps = np.round(kernel / np.where(usable, scales, np.inf))
    return np.clip(steps, -_LARGEST, _LARGEST).astype("int8"), scales.astype(kernel.dtype)


def replaced(value: Any, old: Any, new: Any) -> Any:
    """``value`` with ``new`` wherever it, or a list, tuple or mapping in it, holds ``old``."""
    if value is old:
        return new
    if isinstance(value, dict):
        parts: Any = {name: replaced(part, old, new) for name, part in value.items()}
        changed = any(parts[name] is not part for name, part in value.items())
    elif isinstance(value, list) or type(value) is tuple:
        parts = [replaced(part, old, new) for part in value]
        changed = any(a is not b for a, b in zip(parts, value, strict=True))
        parts = tuple(parts) if type(value) is tuple else parts
    else:
        return value
    return parts if changed else value


def _reached(layer: Any, apart: bool = True) -> Iterator[Any]:
    """The layer and what is quantisable inside it; nothing that layers of other kinds hold.

    Without ``apart`` nothing that has a configuration of its own either.
    """
    yield layer
    left_out = [] if apart else layer._saved_apart()
    for inside in layer._layers:
        if isinstance(inside, Quantizable) and not any(inside is other for other in left_out):
            yield from _reached(inside, apart)


def _has_kernels(layer: Any) -> bool:
    return any(each._own_kernels() for each in _reached(layer))
