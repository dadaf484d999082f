"""An event loop whose time passes only where everything waits, and work that takes such time."""

import asyncio
import time
from concurrent.futures import Future

from serving.runtime.work_queue import WorkQueue


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer instead of waiting for it."""

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        select = self._selector.select

        def jump(timeout=None):
            self.now += timeout or 0.0
            return select(0)

        self._selector.select = jump

    def time(self):
        return self.now


class SimulatedThreads:
    """Threads of a queue, each of whose tasks takes the same time."""

    def __init__(self, loop, seconds):
        self.loop, self.seconds, self.done = loop, seconds, 0

    def submit(self, function, *arguments):
        self.loop.call_later(self.seconds, self._run, self.loop.now, function, arguments)
        return Future()

    def work(self):
        """What a caller has done for it: ends ``seconds`` after it was begun."""
        self.done += 1
        self.loop.now = self._end

    def shutdown(self, wait=True):
        pass

    def _run(self, began, function, arguments):
        self._end, self.loop.now = self.loop.now, began
        function(*arguments)
        self.loop.now = self._end


def simulate(monkeypatch, main, threads, waiting, seconds):
    """Run ``main(queue, threads)`` on a queue whose work takes ``seconds`` of simulated time."""
    loop = SimulatedLoop()
    monkeypatch.setattr(time, "monotonic", loop.time)
    queue = WorkQueue(threads, waiting, "simulated")
    queue.close()
    queue._executor = pretended = SimulatedThreads(loop, seconds)
    try:
        return loop.run_until_complete(main(queue, pretended))
    finally:
        monkeypatch.undo()
        loop.close()
