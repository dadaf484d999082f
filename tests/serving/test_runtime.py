"""What both servers stand on: the bounded queue, the memory budget, threads that last."""

import asyncio
import gc
import gzip
import json
import threading
import time
import tracemalloc
import weakref
import zlib
from collections import Counter
from collections.abc import Callable

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_helpers import wait_for
from simulated_time import simulate

from serving.runtime import memory_trimmer
from serving.runtime.call import Call
from serving.runtime.collector import freeze_heap
from serving.runtime.errors import (
    AbandonedError,
    DeadlinePassedError,
    OverloadedError,
    TooLargeError,
)
from serving.runtime.inflate import inflate
from serving.runtime.json_cost import json_cost, text_cost
from serving.runtime.memory_budget import MemoryBudget
from serving.runtime.memory_trimmer import MemoryTrimmer
from serving.runtime.steady_thread import SteadyThread
from serving.runtime.work_queue import WorkQueue


class Gate:
    """Work that waits to be let go, and says what it did."""

    def __init__(self):
        self.open = threading.Event()
        self.begun: list[object] = []

    def work(self, name):
        def run():
            self.begun.append(name)
            assert self.open.wait(10)
            return name

        return run


async def settle():
    for _ in range(20):
        await asyncio.sleep(0.005)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_results_and_exceptions_come_back():
    async def main():
        queue = WorkQueue(2, 10, "test")
        released = []
        assert await queue.run(lambda: 7, Call(10), lambda: released.append(1)) == 7
        with pytest.raises(ZeroDivisionError):
            await queue.run(lambda: 1 / 0, Call(10), lambda: released.append(2))
        with pytest.raises(DeadlinePassedError):
            await queue.run(lambda: 7, Call(0.0), lambda: released.append(3))
        assert released == [1, 2, 3]
        queue.close()

    run(main())


def test_few_wait_in_order_and_many_newest_first():
    async def main(waiting):
        queue, gate = WorkQueue(2, 100, "test"), Gate()
        works = [gate.work(name) for name in range(2 + waiting)]
        begun, begin = [], queue._begin

        def begin_noted(entry):  # as the queue decides; the threads begin in any order
            begun.append(works.index(entry.work))
            begin(entry)

        queue._begin = begin_noted
        tasks = []
        for work in works:
            tasks.append(asyncio.create_task(queue.run(work, Call(10))))
            await asyncio.sleep(0)
        await settle()
        assert (queue.running, queue.waiting) == (2, waiting)
        gate.open.set()
        assert await asyncio.gather(*tasks) == list(range(2 + waiting))
        queue.close()
        return begun

    assert run(main(2)) == [0, 1, 2, 3]
    # Once two wait, one for a thread, they are served in turn again.
    assert run(main(6)) == [0, 1, 7, 6, 5, 4, 2, 3]


def test_the_longest_waiting_is_refused_when_the_queue_is_full():
    async def main():
        queue, gate = WorkQueue(1, 2, "test"), Gate()
        tasks = [asyncio.create_task(queue.run(gate.work(n), Call(10))) for n in range(5)]
        await settle()
        gate.open.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert outcomes[0] == 0 and outcomes[3:] == [3, 4]
        assert all(isinstance(outcome, OverloadedError) for outcome in outcomes[1:3])
        assert outcomes[1].retry_after_seconds > 0
        assert queue.refused == 2
        queue.close()

    run(main())


def test_admission_by_expected_time():
    async def main():
        queue, gate = WorkQueue(1, 100, "test"), Gate()
        await queue.run(lambda: time.sleep(0.3), Call(10))
        first = asyncio.create_task(queue.run(gate.work("first"), Call(10)))
        await asyncio.sleep(0)
        started = time.monotonic()
        with pytest.raises(OverloadedError):  # 0.3 s of work in front, 0.2 s of time
            await queue.run(gate.work("late"), Call(0.2))
        assert time.monotonic() - started < 0.1
        gate.open.set()
        assert await first == "first"
        # A slow spell does not refuse for ever: with nothing under way, work is begun.
        assert await queue.run(lambda: 5, Call(0.2)) == 5
        queue.close()

    run(main())


def test_who_hangs_up_is_not_worked_for():
    async def main():
        queue, gate = WorkQueue(1, 100, "test"), Gate()
        released = []
        first = asyncio.create_task(queue.run(gate.work("first"), Call(10)))
        await settle()
        call = Call(10)
        gone = asyncio.create_task(queue.run(gate.work("gone"), call, lambda: released.append(1)))
        await settle()
        gone.cancel()
        await settle()
        assert (queue.waiting, released, call.abandoned) == (0, [1], True)
        gate.open.set()
        await first
        await settle()
        assert gate.begun == ["first"]
        queue.close()

    run(main())


def test_the_deadline_holds_while_work_is_stuck():
    async def main():
        queue, gate = WorkQueue(1, 100, "test"), Gate()
        released = []
        call = Call(0.1)
        with pytest.raises(DeadlinePassedError):
            await queue.run(gate.work("stuck"), call, lambda: released.append(1))
        assert call.abandoned and not released  # what it holds is held until it ends
        with pytest.raises(DeadlinePassedError):
            await queue.run(gate.work("behind"), Call(0.1))
        gate.open.set()
        await settle()
        assert released == [1] and gate.begun == ["stuck"]
        queue.close()

    run(main())


def test_a_call_is_stopped_where_it_is():
    call, stopped = Call(10), []
    with call.stopped_by(lambda: stopped.append("late")):
        pass
    with call.stopped_by(lambda: stopped.append("now")):
        call.abandon()
    with call.stopped_by(lambda: stopped.append("at once")):
        pass
    assert stopped == ["now", "at once"]
    with pytest.raises(AbandonedError):
        call.check("the next stage")


@given(st.binary(max_size=2000), st.integers(1, 4))
def test_inflate_reads_every_member(content, members):
    body = b"".join(gzip.compress(content) for _ in range(members))
    with MemoryBudget(2**24, 2**24).open() as allowance:
        assert inflate(body, allowance) == content * members


@given(st.binary(min_size=1, max_size=300))
def test_inflate_refuses_or_agrees_with_zlib(body):
    try:
        expected = zlib.decompress(body, wbits=31)
    except zlib.error:
        expected = None
    with MemoryBudget(2**24, 2**24).open() as allowance:
        if expected is None:
            with pytest.raises(ValueError, match="not gzip"):
                inflate(body, allowance)
        else:
            assert inflate(body, allowance) == expected


def test_inflate_of_half_a_body_and_of_a_bomb():
    whole = gzip.compress(bytes(10_000_000))
    budget = MemoryBudget(2**20, 2**21)
    with budget.open() as allowance, pytest.raises(TooLargeError, match=str(2**20)):
        inflate(whole, allowance)
    with budget.open() as allowance, pytest.raises(ValueError, match="ends too early"):
        inflate(gzip.compress(b"abc")[:-5], allowance)
    assert budget.held == 0


DOCUMENTS = {
    "numbers": b"[" + b"1.5," * 20_000 + b"1]",
    "lists": b"[" + b"[]," * 20_000 + b"[]]",
    "objects": b"[" + b'{"a":{}},' * 10_000 + b"{}]",
    "strings": b"[" + b'"abc",' * 20_000 + b'""]',
    "wide characters": json.dumps(["a" * 100_000 + "\U0001f600"], ensure_ascii=False).encode(),
    "wide escapes": json.dumps(["a" * 100_000 + "\U0001f600"]).encode(),
    "no UTF-8": b'["' + b"a" * 100_000 + b'\xff"]',
}


def _least_memory(parse: Callable[[], object]) -> tuple[int, int]:
    """Bytes that the result takes, and that parsing takes at its peak.

    The least of several runs, as tracemalloc counts what other threads allocate too.
    """
    runs = []
    for _ in range(5):
        tracemalloc.start()
        try:
            kept = parse()
            runs.append(tracemalloc.get_traced_memory())
            assert kept
        finally:
            tracemalloc.stop()
    return min(now for now, _ in runs), min(peak for _, peak in runs)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_parsed_document_takes_no_more_than_its_estimate(name):
    body = DOCUMENTS[name]
    _, peak = _least_memory(lambda: json.loads(body.decode("utf-8", "surrogateescape")))
    assert peak <= json_cost(body) + text_cost(body) + 10_000
    if name != "no UTF-8":
        kept, _ = _least_memory(lambda: orjson.loads(body))
        assert kept <= json_cost(body)


def test_memory_is_returned_after_large_requests_alone(monkeypatch):
    returned = []
    monkeypatch.setattr(memory_trimmer, "return_freed", lambda: returned.append(1))
    monkeypatch.setattr(memory_trimmer, "_SECONDS", 0.001)
    budget = MemoryBudget(2**30, 2**30)
    trimmer = MemoryTrimmer(budget)
    trimmer.start()
    with budget.open() as small:
        small.take(2**20, "the body")
    time.sleep(0.05)
    assert not returned
    with budget.open() as large:
        large.take(2**25, "the body")
    wait_for(lambda: returned)
    trimmer.stop()
    assert budget.take_highest() == 0


def test_what_is_frozen_is_not_looked_through():
    mine = [[]]
    freeze_heap()
    try:
        assert not any(other is mine for other in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(other is mine for other in gc.get_objects())


@pytest.mark.parametrize("fault", [RuntimeError("x"), MemoryError(), SystemExit(1)])
def test_no_exception_ends_a_steady_thread(fault, caplog):
    calls = []

    def step():
        calls.append(1)
        if len(calls) < 5:
            raise fault

    thread = SteadyThread("test", step, 0.001)
    thread.start()
    wait_for(lambda: len(calls) > 6)
    thread.stop()
    assert thread.failures == 4
    assert sum(bool(record.exc_info) for record in caplog.records) == 1  # told once in full
    seen = len(calls)
    time.sleep(0.02)
    assert len(calls) == seen


def test_a_steady_thread_stops_at_once():
    for _ in range(50):
        thread = SteadyThread("test", lambda: None, 60.0)
        thread.start()
        started = time.monotonic()
        thread.stop()
        assert time.monotonic() - started < 5


def test_a_refusal_keeps_nothing_of_what_was_refused():
    """Without garbage collection: a cycle of error and frame would keep the body alive."""

    class Body:
        pass

    bodies: list[weakref.ref] = []
    alive_at_release: list[object] = []

    def work():
        body = Body()
        bodies.append(weakref.ref(body))
        try:
            raise ValueError("no JSON")
        except ValueError as error:
            raise TooLargeError("the body is too large") from error

    async def main():
        queue = WorkQueue(1, 1, "test")
        try:
            await queue.run(work, Call(10.0), lambda: alive_at_release.append(bodies[0]()))
        except TooLargeError as error:
            refused.append(weakref.ref(error))
        queue.close()

    refused: list[weakref.ref] = []
    gc.disable()
    try:
        run(main())
        assert alive_at_release == [None]
        assert refused[0]() is None
    finally:
        gc.enable()


async def goodput(queue, threads, clients, patience, seconds):
    """What callers got, who ask again and again and hang up after their patience."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    counts = Counter()

    async def ask():
        while loop.time() < end:
            began = loop.time()
            try:
                await asyncio.wait_for(queue.run(threads.work, Call(1.0)), patience)
                counts["answered"] += 1
            except asyncio.TimeoutError:
                counts["hung up"] += 1
            except OverloadedError:
                counts["refused"] += 1
                await asyncio.sleep(max(0.0, patience - (loop.time() - began)))

    await asyncio.gather(*(ask() for _ in range(clients)))
    return counts


@pytest.mark.parametrize("seconds", [0.01, 0.02, 0.08])
def test_many_impatient_callers_get_what_a_few_get(monkeypatch, seconds):
    """64 callers of 0.3 s against 4, in simulated time; afterwards one is answered at once."""

    async def main(queue, threads):
        calm = await goodput(queue, threads, clients=4, patience=0.3, seconds=10)
        done = threads.done
        storm = await goodput(queue, threads, clients=64, patience=0.3, seconds=10)
        worked = threads.done - done
        while queue.running:
            await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time()
        await queue.run(threads.work, Call(1.0))
        return calm, storm, worked, asyncio.get_running_loop().time() - began

    calm, storm, worked, lone = simulate(monkeypatch, main, 4, 256, seconds)
    assert storm["answered"] >= 0.8 * calm["answered"]
    assert storm["answered"] >= 0.8 * worked
    assert lone == pytest.approx(seconds)
