"""Items whose awaitable nobody holds any more: they are cancelled, as if whoever waited had been."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from batches import KINDS, Held, batching, gathered
from support import eventually

pytestmark = pytest.mark.asyncio

each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
async def test_an_item_that_nobody_can_await_any_more_leaves_the_queue(kind):
    held = Held(kind)
    async with batching(held.function, max_batch_size=1, max_in_flight_per_client=1) as batcher:
        first = asyncio.ensure_future(batcher.submit(0))
        await held.entered()
        dropped = batcher.submit(1, client="c")
        del dropped
        assert (batcher.stats().cancelled, batcher.stats().queued) == (1, 0)
        # Its client's place is free again.
        second = batcher.submit(2, client="c")
        held.open()
        assert await gathered(first, second) == [0, 4]
        assert held.batches == [[0], [2]]


@each_kind
async def test_an_item_that_was_dispatched_is_let_go_of_too_and_its_function_can_see_it(kind):
    held = Held(kind)
    batches = []

    def note(batch):
        batches.append(batch)
        return held.function(batch)

    async def note_async(batch):
        return await note(batch)

    async with batching(note if kind == "thread" else note_async) as batcher:
        dropped = batcher.submit(1)
        await held.entered()
        assert not batches[0].cancelled(0)
        del dropped
        assert batches[0].cancelled(0)
        held.open()
        await eventually(lambda: batcher.stats().late_results == 1)
        assert (batcher.stats().cancelled, batcher.stats().completed) == (1, 0)


async def test_an_answer_is_kept_for_whoever_awaits_it_later():
    held = Held("task")
    held.open()
    async with batching(held.function) as batcher:
        kept = batcher.submit(1)
        await eventually(kept.done)
        gc.collect()
        assert await kept == 2
        assert await kept == 2
        del kept
        assert batcher.stats().cancelled == 0


@pytest.mark.parametrize("many", [False, True])
async def test_a_task_that_is_cancelled_before_its_first_step_takes_its_item_with_it(many):
    held = Held("task")
    async with batching(held.function, max_batch_size=1) as batcher:
        first = asyncio.ensure_future(batcher.submit(0))
        await held.entered()
        wait = batcher.map([1, 2]) if many else batcher.submit(1)

        async def never_begins(wait):
            return await wait

        for task in (asyncio.ensure_future(wait), asyncio.create_task(never_begins(wait))):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        del wait, task
        gc.collect()
        assert (batcher.stats().cancelled, batcher.stats().queued) == (2 if many else 1, 0)
        held.open()
        assert await first == 0
    assert held.batches == [[0]]


async def test_a_map_that_nobody_can_await_any_more_takes_its_items_with_it_and_closes_its_source():
    held, closed = Held("task"), []

    def items():
        try:
            yield from range(100)
        finally:
            closed.append(True)

    async with batching(held.function, max_batch_size=1, queue_capacity=4) as batcher:
        dropped = batcher.map(items())
        await held.entered()
        del dropped
        assert closed == [True]
        held.open()
        await eventually(lambda: batcher.stats().in_flight == 0)
        assert (held.batches, batcher.stats().queued) == ([[0]], 0)


async def test_a_source_that_cancels_its_map_is_asked_no_more():
    held, drawn = Held("task"), []

    def items():
        for number in range(10_000):
            if number == 20:
                mapped.cancel()
            drawn.append(number)
            yield number

    async with batching(held.function, max_batch_size=1, queue_capacity=4) as batcher:
        mapped = batcher.map(items(), return_exceptions=True)
        waits = asyncio.ensure_future(mapped)
        held.open()
        answers = await waits
        assert drawn == list(range(21))
        assert len(answers) == 20
        assert answers[0] == 0 and isinstance(answers[-1], asyncio.CancelledError)


async def test_one_that_another_thread_lets_go_of_is_cancelled_and_its_loop_is_told():
    held = Held("task")
    async with batching(held.function, max_batch_size=1, queue_capacity=1) as batcher:
        first = asyncio.ensure_future(batcher.submit(0))
        await held.entered()
        hands = [batcher.submit(1)]
        # Waits for the room that the other one leaves.
        mapped = asyncio.ensure_future(batcher.map([2]))
        thread = threading.Thread(target=hands.clear)
        thread.start()
        await asyncio.to_thread(thread.join)
        await eventually(lambda: batcher.stats().queued == 1)
        assert batcher.stats().cancelled == 1
        held.open()
        assert await gathered(first, mapped) == [0, [4]]
        assert held.batches == [[0], [2]]
