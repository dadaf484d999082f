"""Base of the layers that own kernels and biases: how they start, what holds them, LoRA."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_int, check_optional_int
from laser_keras.portable_state import PortableState
from laser_keras.types import Tensor

_KINDS = ("initializer", "regularizer", "constraint")


class KernelLayer(PortableState, keras.layers.Layer):
    """A layer whose kernels and biases take the options of ``keras.layers.Dense``.

    Subclasses create weights with ``add_kernel`` and ``add_bias``, multiply by
    ``effective(kernel)``, end ``build`` with ``finish_build``, and hand ``kernel_options`` to the
    layers inside them.

    Args:
        kernel_initializer: Initialiser of the kernels, or None for the layer's own.
        bias_initializer: Initialiser of the biases.
        kernel_regularizer: Regulariser of the kernels.
        bias_regularizer: Regulariser of the biases.
        kernel_constraint: Constraint of the kernels.
        bias_constraint: Constraint of the biases.
        lora_rank: None, or the rank of the trainable product that ``enable_lora`` adds to each
            kernel, which is then frozen.
        **kwargs: Arguments of ``keras.layers.Layer``.
    """

    def __init__(
        self,
        kernel_initializer: Any = None,
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        lora_rank: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.lora_rank = check_optional_int(self.name, "lora_rank", lora_rank, 1)
        self._kernels: list[Any] = []
        self._takes_lora = False
        self._lora_weights: dict[str, tuple[Any, Any]] = {}

    def initial(self, default: Any = None) -> Any:
        """The initialiser that the user gave, or else ``default``.

        A copy: an initialiser without a seed gives the same numbers whenever it is called.
        """
        return default if self.kernel_initializer is None else _copy(self.kernel_initializer)

    def add_kernel(self, name: str, shape: tuple[Any, ...], initializer: Any = None) -> Any:
        """Create a kernel; ``initializer`` is what ``initial`` gives, unless it is passed."""
        kernel = self.add_weight(
            shape=shape,
            initializer=self.initial() if initializer is None else initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            name=name,
        )
        self._kernels.append(kernel)
        return kernel

    def add_bias(self, name: str, shape: tuple[int, ...]) -> Any:
        """Create a bias."""
        return self.add_weight(
            shape=shape,
            initializer=_copy(self.bias_initializer),
            regularizer=self.bias_regularizer,
            constraint=self.bias_constraint,
            name=name,
        )

    def finish_build(self) -> None:
        """Say that all kernels exist and are multiplied by as ``effective`` gives them."""
        self._takes_lora = True
        if self.lora_rank is not None and not self._lora_weights:
            self._add_lora(self.lora_rank)

    def effective(self, kernel: Any) -> Tensor:
        """What a kernel multiplies by: itself (or None), with LoRA plus its factors' product."""
        factors = None if kernel is None else self._lora_weights.get(kernel.name)
        return kernel if factors is None else ops.add(kernel, ops.matmul(*factors))

    def enable_lora(self, rank: int) -> None:
        """Freeze the kernels and train a product of two thin matrices beside each instead.

        For adapting a trained model with few weights. It reaches the layers inside this one, is
        part of the configuration and of saved files; outputs do not change until it is trained.

        Raises:
            ValueError: before the layer is built, when called twice, and for a bad rank.
        """
        if not self.built or self.lora_rank is not None:
            state = "not built" if not self.built else f"of rank {self.lora_rank} already"
            raise ValueError(
                f"{self.name}: `enable_lora` must be called once, after the layer is built. "
                f"Received: a layer {state}"
            )
        inside = [layer for layer in self._flatten_layers() if isinstance(layer, KernelLayer)]
        if not any(layer._takes_lora for layer in inside):
            raise ValueError(
                f"{self.name}: `enable_lora` reaches no kernel of this layer. "
                f"Received: a {type(self).__name__}"
            )
        rank = check_int(self.name, "rank", rank, 1)
        for layer in inside:
            layer.lora_rank = rank
            if layer._takes_lora:
                layer._add_lora(rank)

    def _add_lora(self, rank: int) -> None:
        self._tracker.unlock()
        for kernel in self._kernels:
            if len(kernel.shape) != 2:
                continue  # a kernel per token: too small to gain
            rows, columns = kernel.shape
            self._lora_weights[kernel.name] = (
                self.add_weight(
                    shape=(rows, rank), initializer="he_uniform", name=f"{kernel.name}_lora_a"
                ),
                self.add_weight(
                    shape=(rank, columns), initializer="zeros", name=f"{kernel.name}_lora_b"
                ),
            )
            kernel.trainable = False
        self._tracker.lock()

    def kernel_options(self) -> dict[str, Any]:
        """The options for a layer inside this one, as its constructor takes them."""
        options = {
            f"{part}_{kind}": getattr(self, f"{part}_{kind}")
            for part in ("kernel", "bias")
            for kind in _KINDS
        }
        return {**options, "lora_rank": self.lora_rank}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        modules = (keras.initializers, keras.regularizers, keras.constraints)
        serialised = {
            f"{part}_{kind}": None
            if getattr(self, f"{part}_{kind}") is None
            else module.serialize(getattr(self, f"{part}_{kind}"))
            for part in ("kernel", "bias")
            for kind, module in zip(_KINDS, modules, strict=True)
        }
        return {**super().get_config(), **serialised, "lora_rank": self.lora_rank}


def _copy(initializer: Any) -> Any:
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    return initializer.__class__.from_config(initializer.get_config())
