"""Saving, loading and exporting a model by the inputs that it was first called with."""

from collections.abc import Mapping
from typing import Any

import keras

from laser_keras.models.ranker_inputs import input_specs, serving_signature


class SavedByInputs(keras.Model):
    """Base of models of a mapping of inputs, with an optional ``embedding`` of raw ones.

    Keras knows neither the dtypes of a mapping's inputs nor which of their axes are free; this
    class keeps what the model was first called with, builds a loaded model from it, and derives the
    serving signature.

    Subclasses set ``embedding``, and call ``_remember`` with the inputs as they were given.
    """

    embedding: keras.layers.Layer | None

    # Invariant: None until a call's inputs have passed the checks, then never changed again.
    _called_with: dict[str, Any] | None = None  # name -> [shape, dtype]

    def _remember(self, inputs: Mapping[str, Any]) -> None:
        if self._called_with is None:
            self._called_with = input_specs(inputs)

    def export(
        self,
        filepath: Any,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Write the model for serving, see ``keras.Model.export``.

        Without ``input_signature`` the inputs are those of the first call, with any batch size
        and any number of candidates. The inputs of an ``embedding`` have names of its own: those
        that have an axis of candidates are found by what it makes of them.
        """
        if input_signature is None and self._called_with is not None:
            input_signature = [serving_signature(self._called_with, self.embedding)]
        super().export(filepath, format, verbose, input_signature, **kwargs)

    @property
    def _default_save_signature(self) -> None:
        # Keras would trace the model with every input as a float, the mask too.
        return None

    def get_build_config(self) -> dict[str, Any] | None:
        """What ``build_from_config`` needs to create the weights again."""
        if self._called_with is None:
            return super().get_build_config()
        return {"raw_inputs": {name: list(spec) for name, spec in self._called_with.items()}}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Create the weights when a saved model is loaded."""
        inputs = self._called_with = config.get("raw_inputs")
        if inputs is None:
            self.build(config["input_shape"])
        elif self.embedding is None:
            self.build({name: shape for name, (shape, _) in inputs.items()})
        else:  # a symbolic run builds the embedding and all that follows
            self.compute_output_spec(
                {name: keras.KerasTensor(shape, dtype) for name, (shape, dtype) in inputs.items()}
            )
            self.built = True
