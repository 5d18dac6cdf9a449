"""Batches with a stream each, on a simulated device."""

from __future__ import annotations

import asyncio
import threading

import headrace as hr
import pytest
from headrace import cuda

from batches import batching
from scrapes import Scrape
from streams import pooled, stopped
from support import GUARD, eventually

pytestmark = pytest.mark.asyncio

KINDS = ("task", "thread")


class Model:
    """Puts work into its batch's stream and answers before it is done: with an event behind the work."""

    def __init__(self, kind, microseconds=10_000):
        self.microseconds = microseconds
        self.lent = []
        self.events = []
        self.function = self.in_task if kind == "task" else self.in_thread

    def run(self, batch):
        stream = batch.stream
        assert stream.live and stream.query()
        self.lent.append(stream.id)
        stream.spin(self.microseconds)
        self.events.append(stream.record_event())
        return [self.events[-1] for _ in batch]

    async def in_task(self, batch):
        return self.run(batch)

    def in_thread(self, batch):
        return self.run(batch)


@pytest.mark.parametrize("kind", KINDS)
async def test_answers_are_told_when_the_stream_has_drained(kind):
    model = Model(kind)
    async with pooled(max_streams=2) as pool:
        async with batching(model.function, streams=pool, max_batch_size=2) as batcher:
            with stopped(pool):
                answers = asyncio.ensure_future(batcher.map(range(12)))
                await eventually(lambda: len(model.events) == 2)
                await asyncio.sleep(0.01)
                assert not answers.done() and not any(event.query() for event in model.events)
            events = await answers
            assert all(event.query() for event in events)
        assert len(model.lent) == 6 and set(model.lent) <= {1, 2}


@pytest.mark.parametrize("kind", KINDS)
async def test_batches_in_flight_overlap_and_are_as_many_as_there_are_streams(kind):
    model = Model(kind)
    async with pooled(max_streams=3) as pool:
        async with batching(model.function, streams=pool, max_batch_size=1) as batcher:
            with stopped(pool):
                tasks = [asyncio.ensure_future(batcher.submit(n)) for n in range(9)]
                await eventually(lambda: len(model.events) == 3)
                assert sorted(model.lent) == [1, 2, 3] and batcher.stats().in_flight == 3
                # Those behind wait where they can still be cancelled.
                assert tasks[-1].cancel()
            await asyncio.gather(*tasks[:-1])
        assert len(model.lent) == 8 and set(model.lent) == {1, 2, 3}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_batch_is_taken_only_when_there_is_a_stream(kind):
    model = Model(kind, 100)
    async with pooled(max_streams=1) as pool:
        async with batching(model.function, streams=pool, max_batch_size=8, workers=2) as batcher:
            async with pool.lease():
                first = asyncio.ensure_future(batcher.submit(1))
                # Both threads may have seen it before one of them has it.
                await eventually(lambda: pool.stats().waiting >= 1)
                # It has not been taken: what comes now joins it, and what is cancelled leaves.
                rest = [asyncio.ensure_future(batcher.submit(n)) for n in (2, 3, 4)]
                await asyncio.sleep(0)
                assert batcher.stats().queued == 4 and rest.pop().cancel()
            await asyncio.gather(first, *rest)
            assert len(model.lent) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_close_does_not_wait_for_a_stream_that_nothing_wants_any_more(kind):
    model = Model(kind, 100)
    async with pooled(max_streams=1) as pool, pool.lease():
        batcher = hr.Batcher(model.function, streams=pool)
        waiting = asyncio.ensure_future(batcher.submit(1))
        await eventually(lambda: pool.stats().waiting >= 1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert await asyncio.wait_for(batcher.aclose(), GUARD)
        await eventually(lambda: pool.stats().waiting == 0)
    assert model.lent == []


async def test_without_a_pool_there_is_no_stream_and_one_worker():
    seen = []

    async def note(batch):
        seen.append(batch.stream)
        return list(batch)

    async with batching(note) as batcher:
        await batcher.submit(1)
    assert seen == [None]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_function_that_raises_gives_its_stream_back(kind):
    def fails(batch):
        raise ArithmeticError

    async def fails_in_task(batch):
        raise ArithmeticError

    async with pooled(max_streams=1) as pool:
        function = fails if kind == "thread" else fails_in_task
        async with batching(function, streams=pool, isolate_failures=True, max_batch_size=4) as batcher:
            ended = await batcher.map(range(8), return_exceptions=True)
            assert [type(each.__cause__) for each in ended] == [ArithmeticError] * 8
        assert pool.stats().errors == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_batch_whose_stream_fails_fails_and_so_do_those_behind_it(kind):
    model = Model(kind, 10_000_000)
    pool = cuda.StreamPool(max_streams=2, backend="sim")
    batcher = hr.Batcher(model.function, streams=pool, max_batch_size=1)
    tasks = [asyncio.ensure_future(batcher.submit(n)) for n in range(6)]
    await eventually(lambda: len(model.lent) == 2)
    pool._lose(719)
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), GUARD)
    assert [type(each) for each in ended] == [hr.BatchFailed] * 6
    assert [type(each.__cause__) for each in ended] == [hr.ContextPoisoned] * 6
    with pytest.raises(hr.BatchFailed):
        await batcher.submit(7)
    assert await batcher.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_batcher_outlives_its_pool_with_errors_that_say_so(kind):
    model = Model(kind)
    pool = cuda.StreamPool(backend="sim")
    async with hr.Batcher(model.function, streams=pool) as batcher:
        await batcher.submit(1)
        assert await pool.close(GUARD)
        with pytest.raises(hr.BatchFailed) as failed:
            await batcher.submit(2)
        assert isinstance(failed.value.__cause__, hr.PoolClosed)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_worker_that_hangs_is_replaced_and_its_stream_comes_back_when_it_ends(kind):
    gate, task_gate = threading.Event(), asyncio.Event()
    calls = []

    def hangs(batch):
        calls.append(batch.stream.id)
        if len(calls) == 1:
            assert gate.wait(GUARD)
        return list(batch)

    async def hangs_in_task(batch):
        calls.append(batch.stream.id)
        if len(calls) == 1:
            await task_gate.wait()
        return list(batch)

    async with pooled(max_streams=2) as pool:
        function = hangs if kind == "thread" else hangs_in_task
        async with hr.Batcher(function, streams=pool, workers=1, callback_timeout=0.05) as batcher:
            with pytest.raises(hr.WorkerLost):
                await batcher.submit(1)
            assert await batcher.submit(2) == 2
            gate.set()
            task_gate.set()
            assert await batcher.submit(3) == 3


async def test_what_yields_is_refused_by_the_settings_name():
    async def streams(batch):
        yield {}

    def yields(batch):
        yield {}

    class Steps:
        def add(self, requests): ...
        def step(self): ...
        def remove(self, tickets): ...
        def capacity(self): ...

    async with pooled() as pool:
        for function in (streams, yields, Steps):
            with pytest.raises(ValueError, match=r"^streams must be None for a st"):
                hr.Batcher(function, streams=pool)


async def test_a_lost_device_makes_the_worker_unready_with_the_reason():
    pool = cuda.StreamPool(backend="sim")
    batcher = hr.Batcher(lambda batch: [1 for _ in batch], streams=pool, name="model")
    other = hr.Batcher(lambda batch: [2 for _ in batch], name="other")
    async with hr.serve({"model": batcher, "other": other}) as worker, hr.Router(worker.address) as router:
        assert await router.call(0, endpoint="model") == 1
        assert worker.ready
        pool._lose(700)
        # The device is asked when something is done with it.
        with pytest.raises(hr.EngineError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            await router.call(0, endpoint="model")
        await eventually(lambda: not worker.ready)
        assert worker.unready_reason is not None and "CUDA_ERROR_ILLEGAL_ADDRESS" in worker.unready_reason


async def test_what_a_pool_does_is_in_the_metrics_and_its_loss_in_the_health():
    def now(family, **labels):
        return Scrape().get(f"cuda_{family}", device="sim", **labels)

    before = now("leases_total"), now("copied_bytes_total", direction="to_device")
    refused = now("capacity_errors_total")
    async with pooled(max_streams=1) as pool:
        async with pool.lease() as stream:
            assert (now("leased_streams"), now("streams_limit")) == (1, 1)
            await stream.copy_to_device(b"x" * 100)
            with pytest.raises(hr.Capacity):
                pool.try_lease()
            # Whoever waits is not refused.
            waiting = asyncio.ensure_future(pool.lease())
            await eventually(lambda: now("waiting_leases") == 1)
            waiting.cancel()
            await asyncio.wait([waiting])
        assert now("capacity_errors_total") == refused + 1
        await eventually(lambda: now("leased_streams") == 0)
    after = now("leases_total"), now("copied_bytes_total", direction="to_device")
    assert (after[0] - before[0], after[1] - before[1]) == (1, 100)

    pool = cuda.StreamPool(backend="sim")
    async with pool.lease() as stream:
        pool._lose(700)
        with pytest.raises(hr.ContextPoisoned):
            await stream
    assert now("poisoned") == 1
    del stream, pool
    await eventually(lambda: now("poisoned") == 0)
