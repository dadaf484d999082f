"""The model in the gateway's own process: no second server, no copy through a socket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from numpy.typing import NDArray

from serving.gateway.errors import GatewayError
from serving.model_server.model_manager import ModelManager
from serving.model_server.model_server import ServerOptions, load_model
from serving.model_server.predict import DEFAULT_SIGNATURE, find_signature, run_signature
from serving.model_server.saved_model import SavedModel
from serving.model_server.status import ServingError
from serving.model_server.versions import ModelConfig
from serving.runtime.call import Call


class InProcessModel:
    """Runs the newest version under a folder, and swaps in newer ones as a model server does.

    Importing this module loads TensorFlow.

    Args:
        base_path: Holds ``<number>/saved_model.pb``.
        model_name: For messages.
        poll_seconds: Time between two looks for a new version.
    """

    def __init__(self, base_path: Path, model_name: str, poll_seconds: float = 1.0) -> None:
        self._name = model_name
        options = ServerOptions(poll_seconds=poll_seconds)
        self._manager = ModelManager(
            [ModelConfig(model_name, base_path)],
            lambda path: load_model(path, options),
            poll_seconds,
            options.max_load_retries,
            options.load_retry_seconds,
        )
        self._manager.start()

    def predict(
        self, inputs: Mapping[str, NDArray], output: str, call: Call
    ) -> tuple[int, NDArray]:
        """Run the model; see ``ModelClient.predict``.

        Raises:
            GatewayError: 502, 503 or 504.
            RuntimeRefusal: The caller has gone away.
        """
        call.check("the model ran")
        try:
            with self._manager.use(self._name) as (version, model):
                assert isinstance(model, SavedModel)
                signature = find_signature(model, DEFAULT_SIGNATURE)
                _check_names(self._name, set(inputs), set(signature.inputs))
                outputs = run_signature(model, signature, inputs, [output], call.left)
        except ServingError as error:
            raise GatewayError(_STATUS.get(error.code, 503), self._explain(error)) from error
        return version, outputs[output]

    def available_versions(self, timeout_seconds: float) -> list[int]:
        """Versions that can be run now, newest first."""
        try:
            statuses = self._manager.statuses(self._name)
        except ServingError:
            return []
        return [status.version for status in statuses if status.state == "AVAILABLE"]

    def close(self) -> None:
        """Unload the model."""
        self._manager.stop()

    def _explain(self, error: ServingError) -> str:
        if error.code == "NOT_FOUND":
            return f"no version of model {self._name!r} is available: push one"
        if error.code == "DEADLINE_EXCEEDED":
            return "the deadline passed before the model answered"
        return f"model {self._name!r} does not take what the feature spec makes: {error.message}"


_STATUS = {
    "NOT_FOUND": 503,
    "DEADLINE_EXCEEDED": 504,
    "INVALID_ARGUMENT": 502,
    "FAILED_PRECONDITION": 502,
}


def _check_names(model_name: str, made: set[str], taken: set[str]) -> None:
    if made != taken:
        raise GatewayError(
            502,
            f"model {model_name!r} does not take what the feature spec makes: it lacks "
            f"{sorted(made - taken)} and wants {sorted(taken - made)}",
        )
