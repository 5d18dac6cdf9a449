"""A function that submits to its own batcher, itself or by what it starts: served, refused, never stuck."""

from __future__ import annotations

import asyncio
import threading

import headrace as hr
import pytest

from batches import batching, gathered
from support import GUARD, eventually

pytestmark = pytest.mark.asyncio


async def test_a_function_that_waits_for_its_own_batcher_is_refused_rather_than_stuck():
    async def again(batch):
        return [await batcher.submit(item - 1) if item else 0 for item in batch]

    async with batching(again, timeout=None) as batcher:
        assert await batcher.submit(0) == 0
        with pytest.raises(hr.BatchFailed, match="submits to it while no other") as failed:
            await asyncio.wait_for(batcher.submit(1), GUARD)
        assert type(failed.value.__cause__) is RuntimeError
        # Others may submit while it runs, and it from outside again.
        assert await batcher.map([0] * 3) == [0, 0, 0]


async def test_a_function_that_waits_for_its_own_batcher_is_served_while_a_worker_is_free():
    async def again(batch):
        return [await batcher.submit(item - 1) if item else 0 for item in batch]

    async with batching(again, workers=3, timeout=None) as batcher:
        assert await asyncio.wait_for(batcher.submit(2), GUARD) == 0
        with pytest.raises(hr.BatchFailed):
            await asyncio.wait_for(batcher.submit(3), GUARD)
        # However many try at once, each is served or refused.
        answers = await gathered(*(batcher.submit(2, key=number) for number in range(10)))
        assert all(answer == 0 or type(answer) is hr.BatchFailed for answer in answers)


async def test_a_task_of_a_function_that_would_wait_without_a_bound_is_refused():
    async def by_a_task(batch):
        async def helper(item):
            return await batcher.submit(item - 1)

        return [await asyncio.create_task(helper(item)) if item else 0 for item in batch]

    async with batching(by_a_task, timeout=None) as batcher:
        with pytest.raises(hr.BatchFailed, match="without a bound"):
            await asyncio.wait_for(batcher.submit(1), GUARD)
        assert await asyncio.wait_for(batcher.submit(0), GUARD) == 0


async def test_a_task_of_a_function_whose_wait_is_bounded_is_let_in():
    async def by_a_task(batch):
        async def helper(item):
            return await batcher.submit(item - 1, timeout=0.05)

        return [await asyncio.create_task(helper(item)) if item else 0 for item in batch]

    async with batching(by_a_task, timeout=None) as batcher:
        with pytest.raises(hr.BatchFailed) as failed:
            await asyncio.wait_for(batcher.submit(1), GUARD)
        assert type(failed.value.__cause__) is hr.Expired


async def test_what_a_function_leaves_behind_may_submit_without_a_bound():
    left = []

    async def later(item):
        await returned.wait()
        return await batcher.submit(item)

    async def leaving(batch):
        left.extend(asyncio.create_task(later(item - 1)) for item in batch if item)
        return list(batch)

    returned = asyncio.Event()
    async with batching(leaving, timeout=None) as batcher:
        assert await batcher.submit(1) == 1
        returned.set()
        assert await asyncio.wait_for(left[0], GUARD) == 0


@pytest.mark.parametrize("kind", ["task", "thread"])
async def test_what_an_earlier_batch_left_behind_may_submit_while_another_one_runs(kind):
    loop, held = asyncio.get_running_loop(), asyncio.Event()
    left, gate = [], threading.Event()

    async def later():
        await held.wait()
        return await batcher.submit("left behind")

    def leave():
        left.append(loop.create_task(later()))

    async def in_task(batch):
        if batch == ["first"]:
            leave()
        elif batch == ["second"]:
            held.set()
            await eventually(lambda: batcher.stats().queued == 1)
        return list(batch)

    def on_thread(batch):
        if batch == ["first"]:
            loop.call_soon_threadsafe(leave)
        elif batch == ["second"]:
            loop.call_soon_threadsafe(held.set)
            assert gate.wait(GUARD)
        return list(batch)

    async with batching(in_task if kind == "task" else on_thread, timeout=None) as batcher:
        assert await batcher.submit("first") == "first"
        await eventually(lambda: left)
        second = asyncio.ensure_future(batcher.submit("second"))
        await eventually(lambda: batcher.stats().queued == 1 or second.done())
        gate.set()
        assert await asyncio.wait_for(second, GUARD) == "second"
        assert await asyncio.wait_for(left[0], GUARD) == "left behind"


async def test_a_threads_function_that_asks_the_loop_without_a_bound_is_refused():
    loop = asyncio.get_running_loop()

    def by_the_loop(batch):
        async def helper(item):
            return await batcher.submit(item - 1)

        return [
            asyncio.run_coroutine_threadsafe(helper(item), loop).result() if item else 0 for item in batch
        ]

    async with batching(by_the_loop, timeout=None) as batcher:
        with pytest.raises(hr.BatchFailed, match="without a bound"):
            await asyncio.wait_for(batcher.submit(1), GUARD)
        assert await asyncio.wait_for(batcher.submit(0), GUARD) == 0
