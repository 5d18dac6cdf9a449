"""A batcher as an engine: requests of several routers share batches."""

from __future__ import annotations

import asyncio

import headrace as hr
import pytest

from batches import Held, double, double_async, gathered, is_quiet
from support import GUARD, Log, eventually, routing, serving

pytestmark = pytest.mark.asyncio

each_kind = pytest.mark.parametrize("kind", ["task", "thread"])


@each_kind
async def test_requests_of_several_routers_share_a_batch(kind):
    held = Held(kind)
    batcher = hr.Batcher(held.function)
    async with serving({"d": batcher}) as (worker, one), routing(worker.address) as two:
        first = asyncio.ensure_future(one.call(0))
        await held.entered()
        calls = [asyncio.ensure_future(router.call(n)) for n, router in enumerate([one, two, one, two], 1)]
        await eventually(lambda: batcher.stats().queued == 4)
        held.open()
        assert await asyncio.gather(first, *calls) == [0, 2, 4, 6, 8]
        assert sorted(held.batches[1]) == [1, 2, 3, 4] and len(held.batches) == 2


async def test_a_batcher_is_named_after_its_function_or_itself():
    async with serving(hr.Batcher(double)) as (worker, router):
        assert worker.endpoints == ["double"]
        assert await router.call(2) == 4
    async with serving(hr.Batcher(double_async, name="twice")) as (worker, router):
        assert worker.endpoints == ["twice"]
        assert await router.call(2) == 4


@each_kind
async def test_a_caller_that_leaves_cancels_its_item(kind):
    held = Held(kind)
    batcher = hr.Batcher(held.function)
    async with serving({"d": batcher}) as (_, router):
        busy = asyncio.ensure_future(router.call(0))
        await held.entered()
        leaves = asyncio.ensure_future(router.call(1))
        await eventually(lambda: batcher.stats().queued == 1)
        leaves.cancel()
        await eventually(lambda: batcher.stats().cancelled == 1)
        assert batcher.stats().queued == 0
        held.open()
        assert await busy == 0
        assert held.batches == [[0]]


@each_kind
async def test_a_callers_deadline_reaches_its_item_and_the_batchers_own_still_counts(kind):
    held = Held(kind)
    batcher = hr.Batcher(held.function)
    async with serving({"d": batcher}) as (_, router):
        busy = asyncio.ensure_future(router.call(0))
        await held.entered()
        (error,) = await gathered(router.call(1, timeout=0.1))
        assert type(error) in (hr.DeadlineExceeded, hr.EngineError)
        await eventually(lambda: batcher.stats().queued == 0)
        stats = batcher.stats()
        assert stats.expired + stats.cancelled == 1
        batcher.configure(timeout=0.05)
        (error,) = await gathered(router.call(1, timeout=60))
        assert type(error) is hr.EngineError and error.engine_type == "Expired"
        held.open()
        assert await busy == 0
        assert held.batches == [[0]]


@each_kind
async def test_a_router_is_a_client_and_may_have_only_so_much_in_flight(kind):
    held = Held(kind)
    batcher = hr.Batcher(held.function, max_in_flight_per_client=1)
    async with serving({"d": batcher}) as (worker, one), routing(worker.address) as two:
        first = asyncio.ensure_future(one.call(1))
        await held.entered()
        (error,) = await gathered(one.call(2))
        assert type(error) is hr.Overloaded and error.phase == "accepted"
        assert "max_in_flight_per_client=1" in str(error)
        other = asyncio.ensure_future(two.call(3))
        await eventually(lambda: batcher.stats().queued == 1)
        held.open()
        assert [await first, await other] == [2, 6]


@each_kind
async def test_a_request_that_a_batcher_has_no_room_for_goes_to_another_worker(kind):
    full, free = Held(kind), Held(kind)
    least = {"max_batch_size": 1, "queue_capacity": 1, "name": "d"}
    first, second = (hr.Batcher(held.function, **least) for held in (full, free))
    async with hr.serve(first) as one, hr.serve(second) as two:
        async with hr.Router([one.address, two.address], policy="round_robin") as router:
            await router.wait_for_instances(2, GUARD)
            busy = [asyncio.ensure_future(router.call(0, instance=one.instance_id))]
            await full.entered()
            busy.append(asyncio.ensure_future(router.call(1, instance=one.instance_id)))
            await eventually(lambda: first.stats().queued == 1)
            free.open()
            for number in range(6):
                assert await router.call(number) == number * 2
            assert router.stats()["retries_total"] > 0
            (error,) = await gathered(router.call(7, instance=one.instance_id))
            assert type(error) is hr.Overloaded and "queue_capacity=1" in str(error)
            full.open()
            assert await asyncio.gather(*busy) == [0, 2]


async def test_a_stream_that_a_batcher_has_no_room_for_goes_to_another_worker():
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(batch):
        entered.set()
        await leave.wait()
        yield [item * 2 for item in batch]

    async def fast(batch):
        yield [item * 2 for item in batch]

    least = {"max_batch_size": 1, "queue_capacity": 1, "name": "d"}
    first, second = (hr.Batcher(function, **least) for function in (slow, fast))
    async with hr.serve(first) as one, hr.serve(second) as two:
        async with hr.Router([one.address, two.address], policy="round_robin") as router:
            await router.wait_for_instances(2, GUARD)
            busy = [await router.generate(0, instance=one.instance_id)]
            await entered.wait()
            busy.append(await router.generate(1, instance=one.instance_id))
            for number in range(4):
                assert await (await router.generate(number)).collect() == [number * 2]
            with pytest.raises(hr.Overloaded, match="queue_capacity=1"):
                await router.generate(7, instance=one.instance_id)
            leave.set()
            assert [await stream.collect() for stream in busy] == [[0], [2]]


async def test_a_request_that_a_closed_batcher_refuses_is_not_lost():
    batcher = hr.Batcher(double)
    async with serving({"d": batcher}) as (_, router):
        assert await router.call(1) == 2
        batcher.close()
        with pytest.raises(hr.Overloaded, match="closed"):
            await router.call(1)


@pytest.mark.parametrize("setting", [{"max_cost": 3}, {"cost": lambda item: item.missing}])
async def test_a_request_that_no_batcher_would_take_is_the_callers_error(setting):
    settings = {"cost": lambda item: item, **setting}
    async with serving(hr.Batcher(double, **settings)) as (_, router):
        with pytest.raises(hr.EngineError) as failed:
            await router.call(7)
        assert failed.value.engine_type == "Rejected"


async def test_what_a_function_fails_with_is_an_engine_error_that_names_it():
    def fails(batch):
        return [KeyError("mine") if item else item for item in batch]

    async with serving(hr.Batcher(fails)) as (_, router):
        with pytest.raises(hr.EngineError) as failed:
            await router.call(1)
        assert failed.value.engine_type == "KeyError"
        assert await router.call(0) == 0


async def counting(batch):
    for number in range(max(batch)):
        yield [number if number < most else hr.DONE for most in batch]


class Steps:
    def __init__(self):
        self.requests, self.log = {}, Log()

    def add(self, requests):
        self.requests.update({ticket: [0, item] for ticket, item in requests})

    def step(self):
        results = []
        for ticket, state in list(self.requests.items()):
            done, item = state
            state[0] += 1
            results.append((ticket, done if done < item else hr.SKIP, done >= item))
            if done >= item:
                del self.requests[ticket]
        return results

    def remove(self, tickets):
        self.log.note(len(tickets))
        for ticket in tickets:
            self.requests.pop(ticket, None)

    def capacity(self):
        return 64 - len(self.requests)


@pytest.mark.parametrize("function", [counting, Steps])
async def test_streaming_functions_and_step_engines_stream(function):
    async with serving({"s": hr.Batcher(function)}) as (_, router):
        streams = [(await router.generate(number)).collect() for number in range(1, 9)]
        assert await asyncio.gather(*streams) == [list(range(number)) for number in range(1, 9)]


async def test_a_stream_that_its_caller_leaves_leaves_the_engine():
    engine = Steps()
    async with serving({"s": hr.Batcher(engine)}) as (_, router):
        stream = await router.generate(10**9)
        assert await anext(stream) == 0
        await stream.aclose()
        await eventually(lambda: engine.requests == {})
        assert engine.log == [1]


async def test_a_worker_serves_when_its_batcher_has_started_and_stops_it_with_itself():
    log = Log()
    hooks = {name: lambda name=name: log.note(name) for name in ("on_start", "warmup", "on_stop")}
    batcher = hr.Batcher(double, **hooks)
    async with serving({"d": batcher}) as (_, router):
        assert log == ["on_start", "warmup"]
        assert await router.call(1) == 2
    assert log == ["on_start", "warmup", "on_stop"]
    assert is_quiet(batcher)


async def test_a_batcher_that_was_started_before_is_not_stopped_with_the_worker():
    async with hr.Batcher(double_async) as batcher:
        for _ in range(2):
            async with serving({"d": batcher}) as (_, router):
                assert await router.call(1) == 2
        assert await batcher.submit(3) == 6


async def test_a_worker_whose_batcher_does_not_start_does_not_serve():
    def broken():
        raise RuntimeError("no device")

    stopped = Log()
    good = hr.Batcher(double, on_stop=lambda: stopped.note("stopped"))
    with pytest.raises(hr.StartupError, match="no device"):
        await hr.serve({"good": good, "bad": hr.Batcher(double, on_start=broken)})
    assert stopped == ["stopped"]


async def test_a_drain_of_the_worker_answers_what_waits_in_the_batcher():
    held = Held("task")
    batcher = hr.Batcher(held.function, max_batch_size=1)
    async with hr.serve({"d": batcher}) as worker, hr.Router(worker.address) as router:
        calls = [asyncio.ensure_future(router.call(number)) for number in range(3)]
        await eventually(lambda: batcher.stats().submitted == 3)
        draining = asyncio.ensure_future(worker.drain())
        held.open()
        assert await asyncio.gather(*calls) == [0, 2, 4]
        await draining
