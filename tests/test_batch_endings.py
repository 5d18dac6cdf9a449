"""How items end other than by an answer, and how a batcher does: time-outs, cancellation, close, drain."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import headrace as hr
import pytest

from batches import KINDS, Held, batching, double, double_async, gathered, is_quiet
from support import GUARD, eventually, run_script

pytestmark = pytest.mark.asyncio

each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
async def test_what_expires_in_the_queue_is_told_while_the_function_is_busy_and_never_seen_by_it(kind):
    held = Held(kind)
    async with batching(held.function) as batcher:
        busy = asyncio.ensure_future(batcher.submit(0))
        await held.entered()
        begun = time.monotonic()
        (error,) = await gathered(batcher.submit(1, timeout=0.03))
        assert time.monotonic() - begun >= 0.03
        assert type(error) is hr.Expired and isinstance(error, TimeoutError)
        assert error.waited >= 0.03 and not error.predicted
        assert held.returned == 0
        held.open()
        assert await busy == 0
        assert await batcher.submit(2) == 4
        assert held.batches == [[0], [2]]
        stats = batcher.stats()
        assert (stats.expired, stats.timeout_rate) == (1, 1 / 3)


@each_kind
async def test_a_deadline_counts_like_a_timeout_and_the_earlier_one_does(kind):
    held = Held(kind)
    async with batching(held.function) as batcher:
        busy = asyncio.ensure_future(batcher.submit(0))
        await held.entered()
        deadline = time.monotonic() + 0.02
        assert [
            type(error)
            for error in await gathered(
                batcher.submit(1, deadline=deadline),
                batcher.submit(1, deadline=deadline, timeout=None),
                batcher.submit(1, deadline=deadline + 60, timeout=0.02),
            )
        ] == [hr.Expired] * 3
        with pytest.raises(hr.Rejected) as refused:
            batcher.submit(1, deadline=time.monotonic() - 1)
        assert refused.value.reason == "expired"
        held.open()
        await busy


@each_kind
@pytest.mark.parametrize("limit", ["timeout", "response_timeout"])
async def test_a_caller_whose_time_is_over_is_told_at_once_though_the_function_goes_on(kind, limit):
    held = Held(kind)
    async with batching(held.function, max_in_flight_per_client=1) as batcher:
        (error,) = await gathered(batcher.submit(1, client="c", **{limit: 0.05}))
        assert type(error) is hr.ResponseTimeout and isinstance(error, TimeoutError)
        assert error.limit == limit and error.ran > 0
        assert held.returned == 0
        # The function still has it: that is in flight for its client.
        with pytest.raises(hr.Rejected) as refused:
            batcher.submit(2, client="c")
        assert refused.value.reason == "client_cap"
        stats = batcher.stats()
        assert (stats.timed_out, stats.abandoned, stats.in_flight) == (1, 1, 1)
        held.open()
        await eventually(lambda: is_quiet(batcher))
        assert await batcher.submit(2, client="c") == 4
        assert batcher.stats().late_results == 1


@each_kind
async def test_a_cancelled_item_leaves_the_queue_and_its_client_may_submit_again(kind):
    held = Held(kind)
    async with batching(held.function, max_in_flight_per_client=1) as batcher:
        busy = asyncio.ensure_future(batcher.submit(0))
        await held.entered()
        waits = asyncio.ensure_future(batcher.submit(1, client="c"))
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        again = batcher.submit(2, client="c")
        held.open()
        assert [await busy, await again] == [0, 4]
        assert held.batches == [[0], [2]]
        assert batcher.stats().cancelled == 1


@each_kind
async def test_the_function_can_see_that_an_item_was_cancelled(kind):
    held = Held(kind)
    seen = []

    def answer(batch):
        seen.append([batch.cancelled(slot) for slot in range(len(batch))])
        seen.append(batch.remaining(0))
        return double(batch)

    held.answer = answer
    async with batching(held.function) as batcher:
        one, two = (asyncio.ensure_future(batcher.submit(number)) for number in (1, 2))
        await held.entered()
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        held.open()
        assert await two == 4
        assert seen == [[True, False], 0]
        await eventually(lambda: is_quiet(batcher))
        assert batcher.stats().late_results == 1


@each_kind
async def test_wait_for_is_a_cancellation(kind):
    held = Held(kind)
    async with batching(held.function) as batcher:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.submit(1), 0.02)
        assert batcher.stats().cancelled == 1
        held.open()


async def test_what_would_miss_its_deadline_is_expired_early_while_others_wait_that_can_make_theirs():
    async def slow(batch):
        await asyncio.sleep(0.02)
        return batch

    for predictive, early in ((True, True), (False, False)):
        async with batching(slow, max_batch_size=1, predictive_expiry=predictive, timeout=None) as batcher:
            # Ten batches are measured before anything is predicted.
            await batcher.map(range(12))
            batcher.pause()
            # A third would be refused at once.
            soon = [batcher.submit(0, timeout=0.015) for _ in range(2)]
            late = [batcher.submit(1) for _ in range(3)]
            batcher.resume()
            told = await gathered(*soon)
            assert [type(error) for error in told if type(error) is not hr.ResponseTimeout]
            assert (batcher.stats().expired_early > 0) is early
            assert any(getattr(error, "predicted", False) for error in told) is early
            assert await asyncio.gather(*late) == [1, 1, 1]


async def test_what_would_expire_behind_what_waits_is_refused_at_once_unless_it_is_of_a_map():
    async def slow(batch):
        await asyncio.sleep(0.01)
        return batch

    async with batching(slow, max_batch_size=1, queue_capacity=1000, timeout=None) as batcher:
        await batcher.map(range(12))
        waiting = [batcher.submit(number) for number in range(50)]
        with pytest.raises(hr.Rejected, match="50 items wait before it") as refused:
            batcher.submit(0, timeout=0.05)
        assert refused.value.reason == "would_expire" and refused.value.retry_after > 0
        # On a machine that stalls they may expire in their turn.
        told = await batcher.map(range(3), timeout=0.3, return_exceptions=True)
        assert all(isinstance(one, int | hr.Expired | hr.ResponseTimeout) for one in told)
        assert await asyncio.gather(*waiting) == list(range(50))
        stats = batcher.stats()
        assert stats.rejected["would_expire"] == stats.items_rejected == 1


@each_kind
async def test_close_tells_what_waits_and_lets_finish_what_runs(kind):
    held = Held(kind)
    batcher = hr.Batcher(held.function, max_batch_size=1)
    runs = asyncio.ensure_future(batcher.submit(0))
    await held.entered()
    waits = [asyncio.ensure_future(batcher.submit(number)) for number in (1, 2)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(batcher.aclose())
    for error in await gathered(*waits):
        assert type(error) is hr.Closed
    with pytest.raises(hr.Closed):
        batcher.submit(3)
    with pytest.raises(hr.Closed):
        await batcher.map([3])
    assert not runs.done() and not closing.done()
    held.open()
    assert await runs == 0
    assert await closing is True
    stats = batcher.stats()
    assert stats.is_conserved and (stats.closed, stats.completed) == (2, 1)
    assert held.batches == [[0]]
    assert await batcher.aclose() and await batcher.drain()


@each_kind
async def test_drain_lets_what_waits_run_and_refuses_what_comes(kind):
    held = Held(kind)
    batcher = hr.Batcher(held.function, max_batch_size=1)
    waits = [asyncio.ensure_future(batcher.submit(number)) for number in range(3)]
    await held.entered()
    draining = asyncio.ensure_future(batcher.drain())
    await asyncio.sleep(0)
    with pytest.raises(hr.Closed):
        batcher.submit(3)
    held.open()
    assert await asyncio.gather(*waits) == [0, 2, 4]
    assert await draining is True


@each_kind
@pytest.mark.parametrize("ending", ["drain", "aclose"])
async def test_a_function_that_does_not_return_holds_up_neither_drain_nor_close(kind, ending):
    held = Held(kind)
    batcher = hr.Batcher(held.function, max_batch_size=1)
    runs = asyncio.ensure_future(batcher.submit(0))
    await held.entered()
    waits = asyncio.ensure_future(batcher.submit(1))
    await asyncio.sleep(0)
    assert await asyncio.wait_for(getattr(batcher, ending)(0.05), GUARD) is False
    lost, closed = await gathered(runs, waits)
    assert type(lost) is hr.WorkerLost and not lost.hung
    assert type(closed) is hr.Closed
    assert is_quiet(batcher) and batcher.stats().is_conserved
    assert held.returned == (1 if kind == "task" else 0)
    held.open()
    await eventually(lambda: held.returned == 1)


@each_kind
async def test_leaving_the_block_drains_and_an_exception_in_it_closes(kind):
    held = Held(kind)
    held.open()
    async with hr.Batcher(held.function, max_batch_size=1) as batcher:
        waits = [asyncio.ensure_future(batcher.submit(number)) for number in range(3)]
        await asyncio.sleep(0)
    assert [wait.result() for wait in waits] == [0, 2, 4]
    held.shut()
    with pytest.raises(KeyError):
        async with hr.Batcher(held.function, max_batch_size=1) as batcher:
            runs = asyncio.ensure_future(batcher.submit(0))
            await held.entered(4)
            waits = asyncio.ensure_future(batcher.submit(1))
            await asyncio.sleep(0)
            held.open()
            raise KeyError
    (error,) = await gathered(waits)
    assert type(error) is hr.Closed
    assert await runs == 0


async def test_one_that_never_started_closes_and_then_refuses():
    for end in ("drain", "aclose"):
        batcher = hr.Batcher(double)
        assert await getattr(batcher, end)() is True
        for use in (batcher.submit, batcher.map):
            with pytest.raises(hr.Closed):
                use([1])
        with pytest.raises(hr.Closed):
            await batcher.start()


@each_kind
async def test_one_that_nobody_holds_any_more_closes_and_is_freed(kind):
    held = Held(kind)
    held.open()
    batcher = hr.Batcher(held.function)
    assert await batcher.submit(1) == 2
    queue = batcher._running.queue
    gone = weakref.ref(batcher)
    del batcher
    gc.collect()
    assert gone() is None
    assert queue.closed


async def test_one_whose_function_knows_it_is_freed_with_its_owner():
    class Model:
        def __init__(self):
            self.batcher = hr.Batcher(self.run)

        async def run(self, batch):
            return list(batch)

    model = Model()
    assert await model.batcher.submit(1) == 1
    queue = model.batcher._running.queue
    gone = weakref.ref(model)
    del model

    def is_gone():
        gc.collect()
        return gone() is None

    await eventually(is_gone)
    assert queue.closed


async def test_what_ends_the_program_in_half_a_batch_fails_the_other_half():
    code = """
import asyncio
import headrace as hr

async def fails(batch):
    if len(batch) == 1:
        raise SystemExit
    raise ValueError

async def main():
    await batcher.map([1, 2])

batcher = hr.Batcher(fails, isolate_failures=True, timeout=None)
try:
    asyncio.run(main())
except SystemExit:
    stats = batcher.stats()
    print(stats.failed, stats.dispatched, stats.in_flight)
"""
    code, out, _ = await asyncio.to_thread(run_script, code)
    assert (code, out) == (0, "2 0 0\n")


@each_kind
async def test_items_and_answers_are_let_go_of(kind):
    class Thing:
        pass

    def answer(batch):
        return [Thing() for _ in batch]

    held = Held(kind, answer)
    held.open()
    async with batching(held.function) as batcher:
        item = Thing()
        thing = await batcher.submit(item)
        held.batches.clear()
        gone = [weakref.ref(item), weakref.ref(thing)]
        del item, thing

        def freed():
            gc.collect()
            return [reference() for reference in gone] == [None, None]

        await eventually(freed)


@each_kind
async def test_a_hung_function_fails_its_batch_and_others_go_on(kind):
    held = Held(kind)
    async with batching(held.function, max_batch_size=2, callback_timeout=0.05) as batcher:
        hung = [asyncio.ensure_future(batcher.submit(number)) for number in (1, 2)]
        await held.entered()
        waits = asyncio.ensure_future(batcher.submit(3))
        for error in await gathered(*hung):
            assert type(error) is hr.WorkerLost
            assert error.hung and error.ran >= 0.05
        # The next batch has a worker of its own; it answers in time.
        await held.entered(2)
        held.open()
        assert await waits == 6
        stats = batcher.stats()
        assert (stats.workers_lost, stats.failed) == (1, 2)
    await eventually(lambda: held.returned == 2)


async def test_a_task_that_hangs_is_cancelled():
    ended = []

    async def hangs(batch):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async with batching(hangs, callback_timeout=0.02) as batcher:
        with pytest.raises(hr.WorkerLost):
            await batcher.submit(1)
        await eventually(lambda: ended == ["cancelled"])


async def test_a_batcher_on_tasks_survives_its_callers():
    async with batching(double_async) as batcher:

        async def one(number):
            return await batcher.submit(number)

        tasks = [asyncio.create_task(one(number)) for number in range(100)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        answers = await gathered(*tasks)
        assert answers[1::2] == [number * 2 for number in range(1, 100, 2)]
