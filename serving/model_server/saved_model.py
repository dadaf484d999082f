"""A loaded SavedModel, run the way TensorFlow Serving runs it: in a session, by tensor name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.client import pywrap_tf_session

from serving.model_server.status import NAMES, ServingError

_LONGEST_SECONDS = 1e9
SERVING_POOL, LOADING_POOL = 0, 1
_BUNDLE_FILES = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")


class _Session(tf.compat.v1.Session):
    """A session whose ``run``, which only the loader of variables calls, keeps off serving."""

    def run(
        self,
        fetches: Any,
        feed_dict: Any = None,
        options: Any = None,
        run_metadata: Any = None,
    ) -> Any:
        options = options or tf.compat.v1.RunOptions(inter_op_thread_pool=LOADING_POOL)
        return super().run(fetches, feed_dict, options, run_metadata)


class SavedModel:
    """One version of a model in memory.

    The graph runs in a session rather than through ``tf.saved_model.load``: TensorFlow Serving
    does the same, so what loads, what runs and what an error says agree with it (a signature's
    shapes are not checked before the kernels see them, an output filter prunes the graph, and a
    deadline stops the run).

    Args:
        path: A version directory, with ``saved_model.pb`` in it.
        tags: Tags of the graph to load.
        intra_op_threads: Threads of one operation; 0 lets TensorFlow choose.
        inter_op_threads: Operations that run at once; 0 lets TensorFlow choose.

    Raises:
        ServingError: The directory holds no SavedModel, a damaged one, or none with these tags.
    """

    def __init__(
        self,
        path: Path,
        tags: Sequence[str] = ("serve",),
        intra_op_threads: int = 0,
        inter_op_threads: int = 0,
    ) -> None:
        if not any((path / name).is_file() for name in _BUNDLE_FILES):
            raise ServingError(
                "NOT_FOUND",
                "Specified file path does not appear to contain a SavedModel bundle (should have "
                f"a file called `saved_model.pb`)\nSpecified file path: {path}",
            )
        graph = tf.Graph()
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=intra_op_threads,
            inter_op_parallelism_threads=inter_op_threads,
        )
        # All models share the first pool; loading has another, of one thread, for itself.
        for name, threads in (("serving", 0), ("loading", 1)):
            config.session_inter_op_thread_pool.add(num_threads=threads, global_name=name)
        self._session = _Session(graph=graph, config=config)
        try:
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, list(tags), str(path))
        except Exception as error:
            self._session.close()
            raise _load_error(error, path, tags) from error
        self.path = path
        self.signatures = dict(meta_graph.signature_def)
        self._graph = graph
        self._tensors: dict[str, object] = {}

    def run(
        self,
        feeds: Mapping[str, NDArray],
        fetches: Sequence[str],
        timeout_seconds: float | None = None,
        pool: int = SERVING_POOL,
    ) -> list[NDArray]:
        """Run the graph; safe to call from many threads at once.

        Args:
            feeds: Arrays by tensor name.
            fetches: Names of the tensors to return, in this order.
            timeout_seconds: After this time the run is stopped; None waits.
            pool: Threads that run operations: those that serve, or the one that loads.

        Raises:
            ServingError: With TensorFlow's own code and message.
        """
        options = tf.compat.v1.RunOptions(inter_op_thread_pool=pool)
        if timeout_seconds is not None:
            options.timeout_in_ms = max(1, int(min(timeout_seconds, _LONGEST_SECONDS) * 1000))
        buffer = pywrap_tf_session.TF_NewBufferFromString(options.SerializeToString())
        try:
            # Session.run would check the placeholder's shape first and cast the value's type;
            # a server leaves both to the kernels, whose messages clients see.
            fetched = pywrap_tf_session.TF_SessionRun_wrapper(
                self._session._session,
                buffer,
                {self._tensor(name): np.asarray(value) for name, value in feeds.items()},
                [self._tensor(name) for name in fetches],
                [],
                None,
            )
            return [_as_array(value) for value in fetched]
        except tf.errors.OpError as error:
            raise ServingError(NAMES.get(error.error_code, "UNKNOWN"), error.message) from error
        finally:
            pywrap_tf_session.TF_DeleteBuffer(buffer)

    def close(self) -> None:
        """Free the model's memory; no run may be under way."""
        self._session.close()
        self._tensors.clear()

    def _tensor(self, name: str) -> object:
        tensor = self._tensors.get(name)
        if tensor is None:
            tensor = self._graph.get_tensor_by_name(name)._as_tf_output()
            self._tensors[name] = tensor
        return tensor


def _as_array(value: Any) -> NDArray:
    """Scalars come out of a session bare; NumPy would cut a string's trailing zero bytes."""
    if isinstance(value, bytes):
        array = np.empty((), object)
        array[()] = value
        return array
    return np.asarray(value)


def _load_error(error: Exception, path: Path, tags: Sequence[str]) -> ServingError:
    if isinstance(error, tf.errors.OpError):
        return ServingError(NAMES.get(error.error_code, "UNKNOWN"), error.message)
    if isinstance(error, RuntimeError) and "MetaGraphDef associated with tags" in str(error):
        wanted = " ".join(tags)
        return ServingError(
            "NOT_FOUND",
            f"Could not find meta graph def matching supplied tags: {{ {wanted} }}. To inspect "
            "available tag-sets in the SavedModel, please use the SavedModel CLI: "
            "`saved_model_cli`",
        )
    return ServingError("DATA_LOSS", f"Can't load the SavedModel at {path}: {error}")
