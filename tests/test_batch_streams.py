"""Streaming functions and step engines: each item has a stream of its own."""

from __future__ import annotations

import asyncio
import threading

import headrace as hr
import pytest

from batches import batching, collected, gathered, is_quiet
from support import GUARD, Log, eventually

pytestmark = pytest.mark.asyncio

KINDS = ("task", "thread")


def streaming(kind, generator):
    """The same generator function on the loop or on a thread."""
    if kind == "thread":
        return generator

    async def asynchronous(batch):
        steps = generator(batch)
        try:
            for step in steps:
                yield step
                await asyncio.sleep(0)
        finally:
            steps.close()

    return asynchronous


each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize("shape", ["list", "dictionary"])
async def test_each_slot_has_its_own_stream_which_ends_where_it_is_done(kind, shape):
    def count_down(batch):
        for step in range(max(batch) + 1):
            said = [
                hr.DONE if step == number else hr.SKIP if step % 2 else (number, step) for number in batch
            ]
            yield said if shape == "list" else dict(enumerate(said))

    async with batching(streaming(kind, count_down)) as batcher:
        streams = [collected(batcher.stream(number)) for number in range(6)]
        assert await asyncio.gather(*streams) == [
            [(number, step) for step in range(number) if step % 2 == 0] for number in range(6)
        ]
        assert batcher.stats().completed == 6
        assert batcher.stats().late_results == 0


@each_kind
async def test_a_slot_that_is_done_ends_before_the_others(kind):
    gate = threading.Event()

    def first_is_done(batch):
        yield ["a", "b"]
        yield {0: hr.DONE}
        assert gate.wait(GUARD)
        yield {0: "ignored", 1: "c"}

    async def on_the_loop(batch):
        yield ["a", "b"]
        yield {0: hr.DONE}
        await eventually(gate.is_set)
        yield {0: "ignored", 1: "c"}

    async with batching(first_is_done if kind == "thread" else on_the_loop) as batcher:
        first, second = batcher.stream(0), batcher.stream(1)
        assert await collected(first) == ["a"]
        assert await anext(second) == "b"
        gate.set()
        assert await collected(second) == ["c"]
        assert await collected(second) == []


@each_kind
async def test_an_exception_in_a_slot_ends_that_stream_alone(kind):
    def one_fails(batch):
        yield [1] * len(batch)
        yield {1: KeyError("mine"), 0: 2}
        yield [3] * len(batch)

    async with batching(streaming(kind, one_fails)) as batcher:
        first, second = batcher.stream(0), batcher.stream(1)
        assert await anext(second) == 1
        with pytest.raises(KeyError, match="mine"):
            await anext(second)
        assert await collected(first) == [1, 2, 3]
        assert batcher.stats().failed == 1


@each_kind
async def test_a_generator_that_raises_fails_the_streams_that_are_left_after_their_items(kind):
    raised = RuntimeError("out of cheese")

    def fails(batch):
        yield [1] * len(batch)
        yield {0: hr.DONE}
        raise raised

    async with batching(streaming(kind, fails)) as batcher:
        streams = [batcher.stream(number) for number in range(3)]
        assert await collected(streams[0]) == [1]
        errors = []
        for stream in streams[1:]:
            assert await anext(stream) == 1
            with pytest.raises(hr.BatchFailed) as failed:
                await anext(stream)
            errors.append(failed.value)
        assert errors[0] is not errors[1]
        assert all(error.__cause__ is raised for error in errors)


@each_kind
@pytest.mark.parametrize(
    ("step", "cause"),
    [
        ({2: "x"}, IndexError),
        ({-1: "x"}, IndexError),
        ({"a": "x"}, IndexError),
        (["x"], hr.WrongResultCount),
        (["x"] * 3, hr.WrongResultCount),
        ("xy", TypeError),
        (7, TypeError),
        (None, TypeError),
    ],
)
async def test_what_is_no_step_fails_the_batch_and_closes_the_generator(kind, step, cause):
    log = Log()

    def wrong(batch):
        try:
            yield step
        finally:
            log.note("closed")

    async with batching(streaming(kind, wrong)) as batcher:
        errors = await gathered(*(collected(batcher.stream(number)) for number in range(2)))
        assert [(type(error), type(error.__cause__)) for error in errors] == [(hr.BatchFailed, cause)] * 2
        await eventually(lambda: log == ["closed"])


@each_kind
async def test_a_generator_is_closed_when_nobody_reads_any_more(kind):
    log = Log()

    def endless(batch):
        try:
            number = 0
            while True:
                yield [number] * len(batch)
                number += 1
        finally:
            log.note("closed")

    async with batching(streaming(kind, endless)) as batcher:
        one, two = batcher.stream(0), batcher.stream(1)
        assert [await anext(one), await anext(two)] == [0, 0]
        await one.aclose()
        assert await collected(one) == []
        assert await anext(two) == 1
        assert log == []
        async with two:
            pass
        await eventually(lambda: log == ["closed"])
        assert batcher.stats().cancelled == 2


async def test_a_function_sees_that_a_stream_was_left():
    log = Log()

    async def looks(batch):
        while not batch.cancelled(0):
            yield {0: 1}
            await asyncio.sleep(0)
        log.note("seen")

    async with batching(looks) as batcher:
        stream = batcher.stream(0)
        assert await anext(stream) == 1
        reads = asyncio.ensure_future(collected(stream))
        await asyncio.sleep(0)
        reads.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reads
        await eventually(lambda: log == ["seen"] or is_quiet(batcher))


@each_kind
async def test_a_streams_time_may_be_over_in_the_queue_and_in_the_function(kind):
    gate = threading.Event()

    def waits(batch):
        yield {0: 1}
        assert gate.wait(GUARD)

    async def waits_async(batch):
        yield {0: 1}
        await eventually(gate.is_set)

    async with batching(waits if kind == "thread" else waits_async, max_batch_size=1) as batcher:
        runs = batcher.stream(0, timeout=0.1)
        queued = batcher.stream(0, timeout=0.02)
        with pytest.raises(hr.Expired):
            await anext(queued)
        assert await anext(runs) == 1
        with pytest.raises(hr.ResponseTimeout):
            await anext(runs)
        gate.set()


async def test_a_stream_that_nobody_reads_is_bounded():
    async def fast(batch):
        for number in range(70_000):
            yield {0: number}

    async with batching(fast) as batcher:
        unread = batcher.stream(0)
        await eventually(lambda: is_quiet(batcher))
        with pytest.raises(hr.SlowConsumer):
            await collected(unread)


async def test_a_fast_stream_lets_others_have_the_loop():
    turns = []

    async def fast(batch):
        for number in range(1000):
            yield {0: number}

    async def ticks():
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    async with batching(fast) as batcher:
        ticking = asyncio.create_task(ticks())
        assert len(await collected(batcher.stream(0))) == 1000
        ticking.cancel()
        assert len(turns) >= 10
