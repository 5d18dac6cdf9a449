"""Step engines: requests join and leave between steps."""

from __future__ import annotations

import asyncio
import threading

import headrace as hr
import pytest

from batches import batching, collected, gathered
from support import GUARD, Log, eventually

pytestmark = pytest.mark.asyncio


class Engine:
    """Counts each request up to its number; says what happened."""

    room = 4

    def __init__(self):
        self.log = Log()
        self.requests = {}
        self.most = 0
        self.steps = 0
        self.gate = threading.Event()
        self.gate.set()
        self.raises = {}

    def add(self, requests):
        self.log.note(("add", [item for _, item in requests]))
        self.maybe_raise("add")
        for ticket, item in requests:
            self.requests[ticket] = [0, item]
        self.most = max(self.most, len(self.requests))

    def step(self):
        assert self.gate.wait(GUARD)
        return self.count()

    def count(self):
        self.steps += 1
        self.maybe_raise("step")
        results = []
        for ticket, state in list(self.requests.items()):
            done, item = state
            if item == "fails" and done == 2:
                results.append((ticket, KeyError("mine"), False))
                del self.requests[ticket]
            elif done == item:
                results.append((ticket, hr.SKIP, True))
                del self.requests[ticket]
            else:
                results.append((ticket, done, False))
                state[0] += 1
        return results

    def remove(self, tickets):
        self.log.note(("remove", len(tickets)))
        self.maybe_raise("remove")
        for ticket in tickets:
            self.requests.pop(ticket, None)

    def capacity(self):
        self.maybe_raise("capacity")
        return self.room - len(self.requests)

    def maybe_raise(self, method):
        error = self.raises.pop(method, None)
        if error is not None:
            raise error


class AsyncEngine(Engine):
    async def step(self):
        await eventually(self.gate.is_set)
        return self.count()


class AsyncThroughout(AsyncEngine):
    async def add(self, requests):
        await asyncio.sleep(0)
        super().add(requests)

    async def remove(self, tickets):
        await asyncio.sleep(0)
        super().remove(tickets)

    async def capacity(self):
        await asyncio.sleep(0)
        return super().capacity()


each_engine = pytest.mark.parametrize("kind", [Engine, AsyncEngine, AsyncThroughout])
FOREVER = 10**9


@each_engine
async def test_requests_join_as_others_leave_and_never_more_than_there_is_room_for(kind):
    engine = kind()
    async with batching(engine) as batcher:
        numbers = [number % 7 for number in range(60)]
        streams = [collected(batcher.stream(number)) for number in numbers]
        assert await asyncio.gather(*streams) == [list(range(number)) for number in numbers]
        assert engine.most == 4
        # Together, not one after the other.
        assert engine.steps < sum(numbers) + len(numbers)
        assert batcher.stats().completed == 60
        assert batcher.stats().late_results == 0
    assert engine.requests == {}


@each_engine
async def test_a_request_joins_while_others_are_in_between_their_steps(kind):
    engine = kind()
    async with batching(engine) as batcher:
        long = batcher.stream(FOREVER)
        assert [await anext(long) for _ in range(10)] == list(range(10))
        assert await collected(batcher.stream(3)) == [0, 1, 2]
        assert await anext(long) == 10
        await long.aclose()
        await eventually(lambda: engine.requests == {})


@each_engine
async def test_a_request_that_is_cancelled_leaves_at_the_next_step(kind):
    engine = kind()
    async with batching(engine) as batcher:
        stays, leaves = batcher.stream(FOREVER), batcher.stream(FOREVER)
        await anext(stays)
        await anext(leaves)
        engine.gate.clear()
        await leaves.aclose()
        steps = engine.steps
        engine.gate.set()
        await eventually(lambda: ("remove", 1) in engine.log)
        # It was in a step already, and is not in the one after it.
        assert len(engine.requests) == 1
        assert engine.steps >= steps
        await stays.aclose()
        await eventually(lambda: engine.requests == {})
        assert batcher.stats().cancelled == 2


@each_engine
async def test_a_request_whose_reader_breaks_out_leaves_too(kind):
    engine = kind()
    async with batching(engine) as batcher:
        async for number in batcher.stream(FOREVER):
            if number == 2:
                break
        await eventually(lambda: engine.requests == {})
        assert batcher.stats().cancelled == 1
        # One that was never read, and one that is still held.
        batcher.stream(FOREVER)
        held = batcher.stream(3)
        assert await collected(held) == [0, 1, 2]
        await eventually(lambda: engine.requests == {})
        assert batcher.stats().cancelled == 2


@each_engine
async def test_a_request_that_expired_or_was_cancelled_before_is_never_added(kind):
    engine = kind()
    engine.room = 1
    async with batching(engine) as batcher:
        runs = batcher.stream(FOREVER)
        await anext(runs)
        expires, cancelled = batcher.stream(7, timeout=0.02), batcher.stream(8)
        await cancelled.aclose()
        with pytest.raises(hr.Expired):
            await anext(expires)
        await runs.aclose()
        assert await collected(batcher.stream(2)) == [0, 1]
        assert [entry[1] for entry in engine.log if entry[0] == "add"] == [[FOREVER], [2]]


@each_engine
async def test_a_result_that_is_an_exception_fails_that_request_alone(kind):
    engine = kind()
    async with batching(engine) as batcher:
        good, bad = batcher.stream(4), batcher.stream("fails")
        assert [await anext(bad), await anext(bad)] == [0, 1]
        with pytest.raises(KeyError, match="mine"):
            await anext(bad)
        assert await collected(good) == [0, 1, 2, 3]


@each_engine
@pytest.mark.parametrize("method", ["step", "capacity"])
async def test_a_step_that_raises_fails_all_its_requests_and_the_engine_goes_on(kind, method):
    engine = kind()
    async with batching(engine) as batcher:
        streams = [batcher.stream(FOREVER) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        raised = engine.raises[method] = RuntimeError("out of cheese")
        for error in await gathered(*map(collected, streams)):
            assert type(error) is hr.BatchFailed and error.__cause__ is raised
        await eventually(lambda: ("remove", 3) in engine.log)
        assert await collected(batcher.stream(2)) == [0, 1]


@each_engine
async def test_an_add_that_raises_fails_the_requests_that_were_to_join(kind):
    engine = kind()
    async with batching(engine) as batcher:
        runs = batcher.stream(FOREVER)
        await anext(runs)
        raised = engine.raises["add"] = RuntimeError("too long")
        with pytest.raises(hr.BatchFailed) as failed:
            await collected(batcher.stream(3))
        assert failed.value.__cause__ is raised
        await eventually(lambda: ("remove", 1) in engine.log)
        number = await anext(runs)
        assert await anext(runs) == number + 1
        await runs.aclose()


@each_engine
@pytest.mark.parametrize("method", ["capacity", "step", "add"])
async def test_an_engine_that_always_raises_tells_everybody_and_does_not_spin(kind, method):
    engine = kind()
    calls = []

    def always(which):
        if which == method:
            calls.append(which)
            raise RuntimeError("broken")

    engine.maybe_raise = always
    async with batching(engine) as batcher:
        errors = await gathered(*(collected(batcher.stream(number)) for number in range(1, 9)))
        assert [type(error) for error in errors] == [hr.BatchFailed] * 8
        # An asynchronous engine looks once more before it waits, perhaps after everybody has been told.
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(calls) <= 10


@each_engine
@pytest.mark.parametrize("wrong", [None, 7, [7], [(1, 2)], {1: 2}, [(1, 2, 3, 4)]])
async def test_a_step_that_returns_something_else_fails_its_requests(kind, wrong):
    engine = kind()
    engine.count = lambda: wrong
    async with batching(engine) as batcher:
        with pytest.raises(hr.BatchFailed, match=r"step\(\) returned"):
            await collected(batcher.stream(1))


@each_engine
@pytest.mark.parametrize("wrong", [None, 1.5, True, "4"])
async def test_a_capacity_that_is_no_number_fails_the_request_that_is_to_join(kind, wrong):
    engine = kind()
    real = engine.capacity
    engine.capacity = lambda: wrong
    async with batching(engine) as batcher:
        with pytest.raises(hr.BatchFailed, match=r"capacity\(\) returned"):
            await collected(batcher.stream(1))
        engine.capacity = real
        assert await collected(batcher.stream(1)) == [0]


@each_engine
async def test_an_empty_engine_is_given_a_request_whatever_its_room(kind):
    engine = kind()
    engine.room = -3
    async with batching(engine) as batcher:
        streams = [collected(batcher.stream(2)) for _ in range(3)]
        assert await asyncio.gather(*streams) == [[0, 1]] * 3
        assert engine.most == 1


@each_engine
async def test_results_of_requests_that_have_left_are_ignored(kind):
    engine = kind()
    count = engine.count
    engine.count = lambda: [*count(), (12345, "nobody's", False), (12345, hr.SKIP, True)]
    async with batching(engine) as batcher:
        assert await collected(batcher.stream(2)) == [0, 1]


@each_engine
async def test_a_drain_lets_requests_finish_and_a_close_in_time_gives_them_up(kind):
    engine = kind()
    batcher = hr.Batcher(engine)
    reads = asyncio.ensure_future(collected(batcher.stream(50)))
    await eventually(lambda: engine.log)
    assert await batcher.drain()
    assert await reads == list(range(50))

    engine = kind()
    batcher = hr.Batcher(engine)
    stream = batcher.stream(FOREVER)
    await anext(stream)
    assert await asyncio.wait_for(batcher.aclose(0.05), GUARD) is False

    async def reads_on():
        async for _ in stream:
            pass

    with pytest.raises(hr.WorkerLost):
        await reads_on()
    # It is told that nobody wants its requests any more.
    await eventually(lambda: engine.requests == {})
    assert batcher.stats().is_conserved


@pytest.mark.parametrize("kind", [Engine, AsyncEngine])
async def test_a_step_that_hangs_fails_its_requests_and_others_go_on(kind):
    made = []

    class Made(kind):
        def __init__(self):
            super().__init__()
            made.append(self)

    async with batching(Made, callback_timeout=0.05) as batcher:
        stream = batcher.stream(FOREVER)
        await anext(stream)
        made[0].gate.clear()
        with pytest.raises(hr.WorkerLost) as lost:
            while True:
                await anext(stream)
        assert lost.value.hung
        if kind is AsyncEngine:
            # The engine is the same; its step has been cancelled.
            made[0].gate.set()
        assert await collected(batcher.stream(3)) == [0, 1, 2]
        assert len(made) == (2 if kind is Engine else 1)
        for engine in made:
            engine.gate.set()


@each_engine
async def test_a_long_stream_is_bounded_by_its_steps_not_by_its_length(kind):
    """`callback_timeout` counts for each step."""
    engine = kind()
    async with batching(engine, callback_timeout=0.2) as batcher:
        stream = batcher.stream(FOREVER)
        begun = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < begun + 0.4:
            await anext(stream)
        assert batcher.stats().workers_lost == 0
        await stream.aclose()


@each_engine
async def test_each_worker_has_an_engine_of_its_own(kind):
    made = []

    class Made(kind):
        def __init__(self):
            super().__init__()
            made.append(self)

    async with batching(Made, workers=2) as batcher:
        streams = [batcher.stream(FOREVER) for _ in range(8)]
        for stream in streams:
            await anext(stream)
        assert [len(engine.requests) for engine in made] == [4, 4]
        for stream in streams:
            await stream.aclose()


async def test_a_synchronous_step_with_an_async_method_is_told_so():
    class Mixed(Engine):
        async def add(self, requests):
            pass

    async with batching(Mixed()) as batcher:
        with pytest.raises(hr.BatchFailed, match="async method"):
            await collected(batcher.stream(1))


async def test_every_method_runs_on_the_workers_own_thread():
    names = set()

    class Noting(Engine):
        def __getattribute__(self, name):
            if name in ("add", "step", "remove", "capacity"):
                names.add(threading.current_thread().name)
            return super().__getattribute__(name)

    async with batching(Noting, name="n") as batcher:
        stream = batcher.stream(FOREVER)
        await anext(stream)
        await stream.aclose()
    assert names == {"headrace-n-0"}


async def test_an_engine_that_hangs_is_left_before_another_thread_enters_it():
    engine = Engine()
    inside, most = [], []
    step = engine.step

    def noting():
        inside.append(1)
        most.append(len(inside))
        try:
            return step()
        finally:
            inside.pop()

    engine.step = noting
    async with batching(engine, callback_timeout=0.05) as batcher:
        stream = batcher.stream(FOREVER)
        await anext(stream)
        engine.gate.clear()
        with pytest.raises(hr.WorkerLost):
            while True:
                await anext(stream)
        waits = asyncio.ensure_future(collected(batcher.stream(3)))
        # Time enough for another thread, had there been one.
        await asyncio.sleep(0.1)
        assert batcher.stats().queued == 1
        engine.gate.set()
        assert await waits == [0, 1, 2]
        assert max(most) == 1
        # The first one has left with its thread.
        assert engine.requests == {} and ("remove", 1) in engine.log
