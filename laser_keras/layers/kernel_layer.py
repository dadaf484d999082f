"""Base of the layers that own kernels and biases: how they start, what holds them, LoRA, int8."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_int, check_optional_int
from laser_keras.portable_state import PortableState
from laser_keras.quantizable import Quantizable, int8_kernel, replaced
from laser_keras.sequence import stable_dtype
from laser_keras.types import Tensor

_OF_KERAS = ("_tracker", "_trainable_variables", "_non_trainable_variables")
_KINDS = ("initializer", "regularizer", "constraint")


class KernelLayer(Quantizable, PortableState, keras.layers.Layer):
    """A layer whose kernels and biases take the options of ``keras.layers.Dense``.

    Subclasses create weights with ``add_kernel`` and ``add_bias``, multiply by
    ``effective(kernel)``, end ``build`` with ``finish_build``, and hand ``kernel_options`` and
    ``dtype_policy`` to the layers of this kind inside them, ``float_policy`` to all others.

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
        if self.quantization_mode not in (None, "int8"):
            raise ValueError(
                f"{self.name}: `dtype` must be float or a dtype policy of int8. "
                f"Received: {self.dtype_policy.name}"
            )
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.lora_rank = check_optional_int(self.name, "lora_rank", lora_rank, 1)
        self._kernels: list[Any] = []
        self._kernel_scales: dict[str, Any] = {}
        self._uses_effective = False
        self._lora_weights: dict[str, tuple[Any, Any]] = {}

    def initial(self, default: Any = None) -> Any:
        """The initialiser that the user gave, or else ``default``.

        A copy: an initialiser without a seed gives the same numbers whenever it is called.
        """
        return default if self.kernel_initializer is None else _copy(self.kernel_initializer)

    def add_kernel(self, name: str, shape: tuple[Any, ...], initializer: Any = None) -> Any:
        """Create a kernel; ``initializer`` is what ``initial`` gives, unless it is passed.

        Under a quantised policy it is of int8 and zero, for a saved file to fill.
        """
        if self.quantization_mode is not None:
            return self._add_int8_kernel(name, shape)
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
        self._uses_effective = True
        if self.lora_rank is not None and not self._lora_weights:
            self._add_lora(self.lora_rank)

    def effective(self, kernel: Any) -> Tensor:
        """What a kernel multiplies by: itself (or None), with LoRA plus its factors' product.

        Of int8, its integers times their scales.
        """
        if kernel is None:
            return None
        scale, factors = self._kernel_scales.get(kernel.name), self._lora_weights.get(kernel.name)
        if scale is not None:  # rounded once, to the compute dtype
            product = ops.multiply(ops.cast(kernel, scale.dtype), scale)
            kernel = ops.cast(product, self.compute_dtype)
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
        if not any(layer._takes_lora() for layer in inside):
            raise ValueError(
                f"{self.name}: `enable_lora` reaches no kernel of this layer. "
                f"Received: a {type(self).__name__}"
            )
        rank = check_int(self.name, "rank", rank, 1)
        for layer in inside:
            layer.lora_rank = rank
            if layer._takes_lora():
                layer._add_lora(rank)

    def _takes_lora(self) -> bool:
        return self._uses_effective and any(len(kernel.shape) == 2 for kernel in self._kernels)

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

    def _own_kernels(self) -> list[Any]:
        return self._kernels

    def _check_kernels(self) -> None:
        if self._kernels and not self._uses_effective:
            raise ValueError(
                f"{self.name}: a layer whose kernels `quantize` reaches must end `build` with "
                f"`finish_build` and multiply by `effective(kernel)`. Received: a "
                f"{type(self).__name__} that does not"
            )

    def _quantize_kernels(self) -> None:
        self._tracker.unlock()
        kernels, others = list(self._kernels), list(self._non_trainable_variables)
        self._kernels = []
        for old in kernels:
            new = self._add_int8_kernel(old.name, tuple(old.shape))
            integers, scales = int8_kernel(ops.convert_to_numpy(old))
            new.assign(integers)
            self._kernel_scales[new.name].assign(scales)
            self._untrack_variable(old)
            for name, value in list(vars(self).items()):
                found = value if name in _OF_KERAS else replaced(value, old, new)
                if found is not value:
                    setattr(self, name, found)
        # Kernels are created first: a layer that is made quantised has its weights in this order.
        for variable in others:
            self._untrack_variable(variable)
            self._track_variable(variable)
        self._tracker.lock()

    def _add_int8_kernel(self, name: str, shape: tuple[Any, ...]) -> Any:
        kernel = self.add_weight(
            shape=shape, initializer="zeros", dtype="int8", trainable=False, name=name
        )
        self._kernel_scales[name] = self.add_weight(
            shape=(*shape[:-2], 1, shape[-1]),
            initializer="ones",
            dtype=stable_dtype(self.variable_dtype),
            trainable=False,
            autocast=False,
            name=f"{name}_scale",
        )
        self._kernels.append(kernel)
        return kernel

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
