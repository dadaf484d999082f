"""The embedded model server: models, REST and gRPC in one process."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc

from serving.model_server.grpc_api import MAX_MESSAGE_BYTES, add_services
from serving.model_server.http_server import HttpServer
from serving.model_server.model_manager import ModelManager
from serving.model_server.rest_api import RestApi
from serving.model_server.saved_model import SavedModel
from serving.model_server.versions import ModelConfig
from serving.model_server.warmup import warm_up

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerOptions:
    """Settings of a model server, named as TensorFlow Serving's flags.

    Attributes:
        host: Address that both ports bind.
        grpc_port: 0 takes a free one; None is off.
        rest_port: 0 takes a free one; None is off.
        poll_seconds: Time between two looks at the disk; 0 looks once.
        max_load_retries: Further attempts at a load that fails.
        load_retry_seconds: Time between two of them.
        rest_timeout_seconds: Longest time one REST call may run.
        threads: Calls answered at once, on each port.
        cors: Answer web pages of other origins.
        intra_op_threads: Of each model; 0 lets TensorFlow choose.
        inter_op_threads: Of each model; 0 lets TensorFlow choose.
        tags: Tags of the graph to load.
        warm_up: Run the requests stored with a version before it is served.
    """

    host: str = "127.0.0.1"
    grpc_port: int | None = 8500
    rest_port: int | None = None
    poll_seconds: float = 1.0
    max_load_retries: int = 5
    load_retry_seconds: float = 60.0
    rest_timeout_seconds: float = 30.0
    threads: int = 4 * (os.cpu_count() or 1)
    cors: bool = False
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    tags: tuple[str, ...] = ("serve",)
    warm_up: bool = True


class ModelServer:
    """Serves models over TensorFlow Serving's APIs.

    Args:
        models: What to serve.
        options: How.

    Example:
        ::

            server = ModelServer([ModelConfig("ranker", Path("/models/ranker"))], ServerOptions())
            server.start()  # returns when the model is loaded and the ports are open
            ...
            server.stop()
    """

    def __init__(self, models: Sequence[ModelConfig], options: ServerOptions) -> None:
        self._options = options
        self.manager = ModelManager(
            models,
            partial(_load, options=options),
            options.poll_seconds,
            options.max_load_retries,
            options.load_retry_seconds,
        )
        self._grpc: grpc.Server | None = None
        self._http: HttpServer | None = None
        self.grpc_address: str | None = None
        self.rest_address: str | None = None

    def start(self) -> None:
        """Load the models, then open the ports: an open port means that the models answer.

        Raises:
            ServingError: A model failed to load for good.
            OSError: A port is in use.
        """
        for port in (self._options.grpc_port, self._options.rest_port):
            _check_free(self._options.host, port)
        self.manager.start()
        try:
            self.manager.wait_until_available()
            self._open_ports()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Close the ports, let calls under way finish, unload the models."""
        if self._http is not None:
            self._http.stop()
        if self._grpc is not None:
            self._grpc.stop(grace=5.0).wait()
        self.manager.stop()

    def _open_ports(self) -> None:
        options = self._options
        if options.grpc_port is not None:
            self._grpc = grpc.server(
                ThreadPoolExecutor(options.threads, thread_name_prefix="grpc"),
                options=[
                    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                    # Without this a second server on the port would start and share its calls.
                    ("grpc.so_reuseport", 0),
                ],
            )
            add_services(self._grpc, self.manager)
            port = _bind_grpc(self._grpc, options.host, options.grpc_port)
            self._grpc.start()
            self.grpc_address = f"{options.host}:{port}"
            log.info("Running gRPC ModelServer at %s ...", self.grpc_address)
        if options.rest_port is not None:
            api = RestApi(self.manager, options.rest_timeout_seconds, options.cors)
            self._http = HttpServer(api, options.host, options.rest_port, options.threads)
            port = self._http.start()
            self.rest_address = f"{options.host}:{port}"
            log.info("Exporting HTTP/REST API at: %s ...", self.rest_address)


def _load(path: Path, options: ServerOptions) -> SavedModel:
    """A model that is ready to answer.

    Raises:
        ServingError: It does not load, or a warm-up request fails.
    """
    model = SavedModel(path, options.tags, options.intra_op_threads, options.inter_op_threads)
    if options.warm_up:
        try:
            warm_up(model)
        except BaseException:
            model.close()
            raise
    return model


def _bind_grpc(server: grpc.Server, host: str, port: int) -> int:
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"{host}:{port} cannot be bound: {error}") from error
    if not bound:
        raise OSError(f"{host}:{port} cannot be bound")
    return bound


def _check_free(host: str, port: int | None) -> None:
    """Fail before minutes of loading rather than after them.

    Raises:
        OSError: The port is in use.
    """
    if not port:
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
