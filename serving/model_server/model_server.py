"""The embedded model server: models, REST and gRPC in one process."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from serving.model_server.grpc_api import GrpcApi
from serving.model_server.grpc_server import GrpcServer
from serving.model_server.http_server import RestServer
from serving.model_server.limits import Limits
from serving.model_server.model_manager import ModelManager
from serving.model_server.rest_api import RestApi
from serving.model_server.saved_model import SavedModel
from serving.model_server.versions import ModelConfig
from serving.model_server.warmup import warm_up
from serving.runtime.loop_thread import LoopThread
from serving.runtime.memory_budget import MemoryBudget
from serving.runtime.memory_trimmer import MemoryTrimmer
from serving.runtime.work_queue import WorkQueue

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
        limits: Bounds on requests.
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
    limits: Limits = field(default_factory=Limits)
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
            partial(load_model, options=options),
            options.poll_seconds,
            options.max_load_retries,
            options.load_retry_seconds,
        )
        limits = options.limits
        self.budget = MemoryBudget(limits.request_bytes, limits.in_flight_bytes)
        self._trimmer = MemoryTrimmer(self.budget)
        self._loop = LoopThread("model-server")
        self._ports: _Ports | None = None
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

    def stop(self, seconds: float = 5.0) -> None:
        """Close the ports, let calls under way finish, unload the models."""
        self._trimmer.stop()
        if self._ports is not None:
            self._loop.run(self._ports.close(seconds))
            self._ports = None
        self._loop.stop()
        self.manager.stop()

    def _open_ports(self) -> None:
        self._trimmer.start()
        self._loop.start()
        self._ports = _Ports(self.manager, self._options, self.budget)
        host = self._options.host
        grpc_port, rest_port = self._loop.run(self._ports.open())
        if grpc_port is not None:
            self.grpc_address = f"{host}:{grpc_port}"
            log.info("Running gRPC ModelServer at %s ...", self.grpc_address)
        if rest_port is not None:
            self.rest_address = f"{host}:{rest_port}"
            log.info("Exporting HTTP/REST API at: %s ...", self.rest_address)


class _Ports:
    """What lives on the event loop: both ports, and the queues behind them."""

    def __init__(self, manager: ModelManager, options: ServerOptions, budget: MemoryBudget) -> None:
        self._manager = manager
        self._options = options
        self._budget = budget
        limits = options.limits
        self._work = WorkQueue(limits.threads, limits.waiting, "the model server")
        self._looks = WorkQueue(2, limits.waiting, "the model server's status")
        self._grpc: GrpcServer | None = None
        self._rest: RestServer | None = None

    async def open(self) -> tuple[int | None, int | None]:
        """Bind; returns the ports of gRPC and REST, None for the one that is off."""
        options, limits = self._options, self._options.limits
        grpc_port = rest_port = None
        if options.grpc_port is not None:
            api = GrpcApi(self._manager)
            methods = {name: (method, self._work) for name, method in api.predictions.items()}
            methods |= {name: (method, self._looks) for name, method in api.looks.items()}
            self._grpc = GrpcServer(methods, options.host, options.grpc_port, limits, self._budget)
            grpc_port = await self._grpc.start()
        if options.rest_port is not None:
            self._rest = RestServer(
                RestApi(self._manager, options.cors),
                options.host,
                options.rest_port,
                limits,
                self._budget,
                self._work,
                self._looks,
                options.rest_timeout_seconds,
            )
            rest_port = await self._rest.start()
        return grpc_port, rest_port

    async def close(self, seconds: float) -> None:
        """Answer what is under way, then close both."""
        stops = [server.stop(seconds) for server in (self._grpc, self._rest) if server is not None]
        await asyncio.gather(*stops)
        for queue in (self._work, self._looks):
            queue.close(wait=False)


def load_model(path: Path, options: ServerOptions) -> SavedModel:
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
