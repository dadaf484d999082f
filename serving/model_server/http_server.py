"""The HTTP shell around the REST API: sockets on an event loop, work in threads."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from serving.model_server.rest_api import RestApi


class HttpServer:
    """Serves a ``RestApi`` from an event loop in a thread of its own.

    Args:
        api: Answers the requests.
        host: Address to bind.
        port: Port to bind; 0 takes a free one.
        threads: Requests that are answered at once.
    """

    def __init__(self, api: RestApi, host: str, port: int, threads: int) -> None:
        self._api = api
        self._host = host
        self._port = port
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="rest")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)
        self._runner: web.ServerRunner | None = None

    def start(self) -> int:
        """Bind and serve.

        Returns:
            The bound port.

        Raises:
            OSError: The port is in use or the address is not this machine's.
        """
        self._thread.start()
        try:
            return asyncio.run_coroutine_threadsafe(self._bind(), self._loop).result()
        except OSError:
            self.stop()
            raise

    def stop(self) -> None:
        """Close the sockets; requests under way are answered first."""
        if not self._thread.is_alive():
            return
        if self._runner is not None:
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._executor.shutdown()
        self._loop.close()

    async def _bind(self) -> int:
        # The API inflates bodies itself: the header it looks at must not be consumed here.
        server = web.Server(self._handle, auto_decompress=False, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=5.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        return self._runner.addresses[0][1]

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        if request.headers.get("Expect", "").lower() == "100-continue":
            # curl waits a second for this before it sends a body beyond a kilobyte.
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = await request.content.read()
        reply = await self._loop.run_in_executor(
            self._executor,
            self._api.answer,
            request.method,
            request.raw_path,
            request.headers,
            body,
        )
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)
