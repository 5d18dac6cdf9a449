"""Requests that are streams: how they flow, who waits for whom, and where the caller's iterator runs."""

from __future__ import annotations

import asyncio
import contextvars

import headrace as hr
import pytest

from support import Log, echo_requests, eventually, serving

pytestmark = pytest.mark.asyncio

MIB = 1024 * 1024


async def numbers(count):
    for number in range(count):
        yield number


async def total(request, ctx):
    return sum(await ctx.requests.collect())


class Counting:
    """Yields items and counts how many it was asked for."""

    def __init__(self, count, item):
        self.count, self.item, self.yielded = count, item, 0

    async def items(self):
        for number in range(self.count):
            self.yielded = number + 1
            yield self.item


async def settled(count):
    """What `count` returns once it no longer changes."""
    seen = []

    def unchanged():
        seen.append(count())
        return len(seen) > 25 and seen[-1] > 0 and seen[-1] == seen[-25]

    await eventually(unchanged)
    return seen[-1]


@pytest.mark.parametrize("generator", [True, False])
async def test_an_engine_that_does_not_read_stops_its_callers_iterator_and_no_other(generator):
    go_on, window = asyncio.Event(), 64 * 1024

    async def waits(request, ctx):
        yield "ready"
        await go_on.wait()
        async for item in ctx.requests:
            yield len(item)

    async with serving({"waits": waits, "echo": echo_requests}, stream_window=window) as (_, router):
        source = Counting(500, bytes(1000))
        items = source.items() if generator else Wrapped(source.items())
        stream = await router.generate(items, endpoint="waits")
        assert await anext(stream) == "ready"
        yielded = await settled(lambda: source.yielded)
        # What fits the window, and the one that found no credit.
        assert yielded == window // 1003 + 1
        assert await (await router.generate(numbers(2000), endpoint="echo")).collect() == list(range(2000))
        assert source.yielded == yielded
        go_on.set()
        assert await stream.collect() == [1000] * 500


class Wrapped:
    """An asynchronous iterator around another."""

    def __init__(self, inner):
        self.inner = inner

    def __aiter__(self):
        return self

    def __anext__(self):
        return self.inner.__anext__()

    def aclose(self):
        return self.inner.aclose()


async def test_10000_items_pass_both_ways_and_neither_side_runs_ahead():
    source, window, ahead = Counting(10_000, bytes(100)), 16 * 1024, []
    taken = 0

    async def slow_echo(request, ctx):
        nonlocal taken
        async for item in ctx.requests:
            taken += 1
            ahead.append(source.yielded - taken)
            if taken % 100 == 0:
                await asyncio.sleep(0)
            yield item

    router = {"stream_window": window}
    async with serving(slow_echo, stream_window=window, router=router) as (_, router):
        count = 0
        async for item in router.generate(source.items()):
            assert item == bytes(100)
            count += 1
        assert (count, taken) == (10_000, 10_000)
        # A window of items on the way, and the one that waits for credit.
        assert max(ahead) <= window // 102 + 1


async def test_large_items_pass_beside_small_ones():
    async def sizes():
        for size in (1, 65_535, 65_536, 8 * MIB, 0, 3 * MIB):
            yield bytes(size)

    async with serving({"echo": echo_requests, "total": total}, stream_window=4096) as (_, router):

        async def large():
            return [len(item) async for item in router.generate(sizes(), endpoint="echo")]

        async def small():
            return await router.call(numbers(3000), endpoint="total")

        answers = await asyncio.gather(large(), small(), small())
        assert answers == [[1, 65_535, 65_536, 8 * MIB, 0, 3 * MIB], sum(range(3000)), sum(range(3000))]


async def test_100_request_streams_at_once():
    async with serving(echo_requests, concurrency=100) as (worker, router):

        async def read(first: int) -> list[int]:
            items = (number async for number in numbers(first + 50) if number >= first)
            return await (await router.generate(items)).collect()

        answers = await asyncio.gather(*(read(n) for n in range(100)))
        assert answers == [list(range(n, n + 50)) for n in range(100)]
        assert worker.stats()["links"] == 1


async def test_the_engine_goes_on_after_the_end_of_the_request():
    async def summary(request, ctx):
        count = 0
        async for item in ctx.requests:
            count += 1
            yield item
        for _ in range(3):
            await asyncio.sleep(0)
            yield f"after {count}"

    async with serving(summary) as (_, router):
        assert await (await router.generate(numbers(2))).collect() == [0, 1, *["after 2"] * 3]


async def test_a_conversation_goes_back_and_forth():
    """Each item of the request depends on the answer to the one before."""
    async with serving(echo_requests) as (_, router):
        answers: asyncio.Queue[int] = asyncio.Queue()

        async def questions():
            number = 1
            while number < 1000:
                yield number
                number = await answers.get() * 2

        seen = []
        async for answer in router.generate(questions()):
            seen.append(answer)
            answers.put_nowait(answer)
        assert seen == [2**power for power in range(10)]


async def test_an_iterator_that_never_awaits_lets_others_have_their_turns():
    turns = 0

    async def ticks():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(ticks())
    async with serving(total) as (_, router):
        assert await router.call(numbers(20_000)) == sum(range(20_000))
    ticking.cancel()
    assert turns > 20_000 / 64 / 2


async def test_nothing_is_taken_before_the_call_is_awaited_and_accepted():
    log, entered, release = Log(), asyncio.Event(), asyncio.Event()

    async def notes():
        log.note("began")
        yield 1

    async def blocks(request, ctx):
        entered.set()
        await release.wait()

    async with serving({"total": total, "blocks": blocks}, concurrency=1, queue=0) as (_, router):
        router.generate(notes(), endpoint="total")
        held = asyncio.ensure_future(router.call(None, endpoint="blocks"))
        await entered.wait()
        with pytest.raises(hr.Overloaded):
            await router.call(notes(), endpoint="total")
        assert log == []
        release.set()
        await held
        assert await router.call(notes(), endpoint="total") == 1
        assert log == ["began"]


async def test_a_refused_request_stream_goes_to_another_worker_whole():
    release = asyncio.Event()

    async def waits(request, ctx):
        await release.wait()

    async with (
        hr.serve({"e": waits}, concurrency=1, queue=0) as full,
        hr.serve({"e": total}) as free,
        hr.Router([full.address, free.address]) as router,
    ):
        await router.wait_for_instances(2)
        held = asyncio.ensure_future(router.call(None, instance=full.instance_id))
        await eventually(lambda: full.stats()["running"] == 1)
        answers = await asyncio.gather(*(router.call(numbers(100)) for _ in range(20)))
        assert answers == [sum(range(100))] * 20
        release.set()
        await held


async def test_the_iterator_runs_in_the_context_of_whoever_awaits():
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    async def asks():
        yield variable.get()
        variable.set("the iterator")
        yield variable.get()

    async with serving(echo_requests) as (_, router):
        variable.set("the caller")
        assert await (await router.generate(asks())).collect() == ["the caller", "the iterator"]
        assert variable.get() == "the caller"


async def test_timeouts_and_tasks_work_inside_the_iterator():
    async def items():
        try:
            async with asyncio.timeout(0.005):
                await asyncio.Event().wait()
        except TimeoutError:
            yield "timed out"
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(0, "from a task"))
        yield task.result()
        assert asyncio.current_task() is not None

    async with serving(echo_requests) as (_, router):
        assert await (await router.generate(items())).collect() == ["timed out", "from a task"]
