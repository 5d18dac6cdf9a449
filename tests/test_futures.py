"""What tasks await is a future of their loop. Loops have futures of several kinds, and each wait must end on
all of them: asyncio's own, which are awaited again and again; those that know who awaits them, as from Python
3.14 on, which are awaited once; those that do not say who awaits them; and those written in Python, with such
tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from typing import Any

import headrace as hr
import pytest

from batches import Held, batching, double_async
from streams import pooled, stopped
from support import GUARD, eventually, serving


class Knowing(asyncio.Future):  # type: ignore[type-arg]
    """As from Python 3.14 on."""

    _asyncio_awaited_by: Any = None


class Silent(asyncio.Future):  # type: ignore[type-arg]
    """One of another library."""

    @property
    def _callbacks(self) -> Any:
        raise AttributeError


class Loop(asyncio.SelectorEventLoop):
    def __init__(self, kind: Any, task: Any) -> None:
        super().__init__()
        self.kind = kind
        self.count = 0
        self.made: weakref.WeakSet[Any] = weakref.WeakSet()
        if task is not None:
            self.set_task_factory(lambda loop, coroutine, **names: task(coroutine, loop=loop, **names))

    def create_future(self) -> Any:
        future = self.kind(loop=self)
        self.made.add(future)
        self.count += 1
        return future


KINDS = {
    "asyncio's": lambda: Loop(asyncio.Future, None),
    "knowing": lambda: Loop(Knowing, None),
    "silent": lambda: Loop(Silent, None),
    "python's": lambda: Loop(asyncio.futures._PyFuture, asyncio.tasks._PyTask),  # type: ignore[attr-defined]
}

every_kind = pytest.mark.parametrize("kind", KINDS)


def run(kind: str, main: Any) -> None:
    with asyncio.Runner(loop_factory=KINDS[kind]) as runner:
        runner.run(asyncio.wait_for(main(), GUARD))


class Gates:
    """An engine that yields when it is told to, and numbers that callers send it."""

    def __init__(self) -> None:
        self.gates: asyncio.Queue[int] = asyncio.Queue()

    async def generate(self, request: Any, ctx: hr.Context) -> Any:
        while (number := await self.gates.get()) >= 0:
            yield number


@every_kind
def test_items_that_come_one_by_one_are_read_one_by_one(kind):
    async def main():
        engine = Gates()
        async with serving(engine.generate) as (_, router):
            stream = await router.generate(None)
            for number in range(20):
                waiting = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                with pytest.raises(RuntimeError, match="already"):
                    await anext(stream)
                engine.gates.put_nowait(number)
                assert await waiting == number
            engine.gates.put_nowait(-1)
            assert await stream.collect() == []

    run(kind, main)


@every_kind
def test_more_than_there_is_credit_for_is_sent_both_ways(kind):
    async def echo(request, ctx: hr.Context):
        async for item in ctx.requests:
            yield item

    async def many():
        for number in range(3000):
            yield bytes([number % 256]) * 1000

    async def main():
        async with serving(echo) as (_, router):
            stream = await router.generate(many())
            # Ten times as much as a window holds.
            assert [item[0] async for item in stream] == [number % 256 for number in range(3000)]

    run(kind, main)


@every_kind
def test_a_reader_that_is_cancelled_as_its_item_comes_leaves_the_others_alone(kind):
    async def main():
        gates = [asyncio.Event() for _ in range(12)]

        async def when_open(request):
            await gates[request].wait()
            yield request

        async with serving(when_open, concurrency=4) as (_, router):
            for first in range(0, 12, 4):
                numbers = range(first, first + 4)
                streams = [await router.generate(number) for number in numbers]
                waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
                await asyncio.sleep(0)
                for number in numbers:
                    gates[number].set()
                waiting[0].cancel()
                await asyncio.wait(waiting)
                assert waiting[0].cancelled()
                assert [each.result() for each in waiting[1:]] == list(numbers)[1:]

    run(kind, main)


@every_kind
def test_a_batcher_answers_those_who_wait_and_cancels_those_who_left(kind):
    async def main():
        async with batching(double_async, max_batch_size=8) as batcher:

            async def submit(number: int) -> int:
                return await batcher.submit(number)

            for _ in range(5):
                assert await asyncio.gather(*map(submit, range(50))) == [2 * n for n in range(50)]
            assert await batcher.map(range(100)) == [2 * n for n in range(100)]
            batcher.pause()
            left = asyncio.ensure_future(submit(1))
            stays = asyncio.ensure_future(submit(2))
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.wait([left])
            batcher.resume()
            assert left.cancelled() and await stays == 4

    run(kind, main)


@every_kind
def test_what_was_given_to_nobody_is_no_wait(kind):
    async def main():
        gate = asyncio.Event()

        async def when_open(batch):
            await gate.wait()
            return list(batch)

        async with batching(when_open) as batcher:
            submission = batcher.submit(1)
            # Whoever drives it by hand and then goes away is no obstacle to who awaits it.
            future = next(submission.__await__())
            assert asyncio.isfuture(future) and not future.done()
            if kind != "silent":
                waiting = asyncio.ensure_future(_wait(submission))
                await asyncio.sleep(0)
                gate.set()
                assert await waiting == 1
            else:
                gate.set()
                await eventually(submission.done)
                assert await submission == 1

    run(kind, main)


@every_kind
def test_who_listens_to_a_future_only_later_is_told(kind):
    async def main():
        async with batching(double_async) as batcher:
            submission = batcher.submit(1)
            future = next(submission.__await__())
            await eventually(submission.done)
            told = asyncio.Event()
            future.add_done_callback(lambda _: told.set())
            await told.wait()
            assert await submission == 2

    run(kind, main)


@every_kind
def test_who_steps_an_awaitable_in_a_task_and_awaits_what_it_waits_for_goes_on(kind):
    async def drive(awaitable):
        steps = awaitable.__await__()
        while True:
            try:
                future = next(steps)
            except StopIteration as end:
                return end.value
            # As a task does, before it is awaited anew.
            future._asyncio_future_blocking = False
            await future

    async def main():
        held = Held("task", list)
        async with batching(held.function) as batcher:
            driving = asyncio.ensure_future(drive(batcher.submit(1)))
            await asyncio.sleep(0)
            held.open()
            assert await driving == 1

    run(kind, main)


@every_kind
def test_a_future_that_somebody_keeps_is_done_when_they_are_told(kind):
    async def main():
        held = Held("task", list)
        async with batching(held.function) as batcher:
            submission = batcher.submit(1)
            asyncio.get_running_loop().call_soon(held.open)
            while True:
                try:
                    future = next(submission.__await__())
                except StopIteration as end:
                    assert end.value == 1
                    break
                assert await asyncio.wait([future]) == ({future}, set())

    run(kind, main)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"silent"}))
def test_a_future_that_was_given_twice_tells_both(kind):
    async def main():
        held = Held("task", list)
        async with batching(held.function) as batcher:
            submission = batcher.submit(1)
            early = next(submission.__await__())
            waiting = asyncio.ensure_future(_wait(submission))
            await asyncio.sleep(0)
            held.open()
            assert await waiting == 1
            told = asyncio.Event()
            early.add_done_callback(lambda _: told.set())
            await told.wait()

    run(kind, main)


@every_kind
def test_the_same_can_be_awaited_again_after_it_was_cancelled(kind):
    async def main():
        async with pooled(max_streams=1) as pool, pool.lease() as stream:
            with stopped(pool):
                stream.spin(1)
                event = stream.record_event()
                for _ in range(3):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(_wait(event), 0.001)
            await event

    run(kind, main)


@every_kind
def test_workers_of_a_batcher_that_are_cancelled_while_they_wait_lose_no_batch(kind):
    async def main():
        async with batching(double_async) as batcher:
            assert await batcher.submit(1) == 2
            mine = {asyncio.current_task()}
            for _ in range(3):
                for task in asyncio.all_tasks() - mine:
                    if "_serve" in repr(task.get_coro()):
                        task.cancel()
                # The worker does not know yet, and an item comes in the same turn.
                assert await batcher.submit(2) == 4

    run(kind, main)


@pytest.mark.parametrize("kind", ["asyncio's", "knowing"])
def test_a_wait_takes_a_new_future_only_where_the_last_cannot_be_used_again(kind):
    async def main():
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        async with batching(double_async) as batcher:
            await batcher.submit(1)
            before = loop.count
            for number in range(100):
                assert await batcher.submit(number) == 2 * number
            made = loop.count - before
            if hasattr(loop.create_future(), "_asyncio_awaited_by"):
                # One for who submits and one for the task that runs the function; done, but for the last.
                assert made >= 200
                assert sum(not future.done() for future in loop.made) < 10
            else:
                # Places to wait are used in turns.
                assert made <= 5

    run(kind, main)


async def _wait(awaitable: Any) -> Any:
    return await awaitable


@pytest.mark.any_loop
@pytest.mark.asyncio
async def test_an_item_awaited_on_another_threads_loop_is_refused_there_and_answered_here():
    async with batching(double_async) as batcher:
        batcher.pause()
        submission = batcher.submit(1)
        with pytest.raises(RuntimeError, match="another thread"):
            await asyncio.to_thread(asyncio.run, _wait(submission))
        waiting = asyncio.ensure_future(_wait(submission))
        batcher.resume()
        assert await waiting == 2


class Meddling(asyncio.SelectorEventLoop):
    """Does something else while it plans a callback, as a collector or a signal's handler might."""

    meddle: Any = None

    def call_soon(self, *args: Any, **keywords: Any) -> Any:
        meddle, self.meddle = self.meddle, None
        if meddle is not None:
            meddle()
        return super().call_soon(*args, **keywords)


def test_what_is_caused_while_a_callback_ends_is_told():
    async def main():
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Meddling)

        async def longer_than_a_turn(batch):
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pass
            if batch == [1]:
                loop.meddle = second.cancel
            return batch

        async with batching(longer_than_a_turn, max_batch_size=1) as batcher:
            # From now on a task waits for batches, which are run inside the callback.
            await batcher.submit(0)
            batcher.pause()
            first, second = batcher.submit(1), batcher.submit(2)
            waiting = asyncio.ensure_future(_wait(second))
            await asyncio.sleep(0)
            # The next batch is put off, which plans another callback at the end of this one. Nobody waits for
            # the first item, so nothing else does.
            batcher.resume()
            for _ in range(10):
                await asyncio.sleep(0)
            assert waiting.cancelled()
            assert await first == 1

    with asyncio.Runner(loop_factory=Meddling) as runner:
        runner.run(asyncio.wait_for(main(), GUARD))
