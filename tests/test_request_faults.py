"""Requests that are streams, when the engine or the caller's iterator fails or ends first: the other side
learns of it, the iterator is closed, and nothing is left.
"""

from __future__ import annotations

import asyncio

import headrace as hr
import msgspec
import pytest
from headrace.errors import StreamKilled

from support import EchoEngine, Log, RequestSource, echo_requests, eventually, serving

pytestmark = pytest.mark.asyncio


# --- the engine first


@pytest.mark.parametrize("source", [None, [1]], ids=["busy", "waiting"])
async def test_an_engine_that_ends_early_closes_the_iterator_and_the_end_is_clean(source):
    async def one(request, ctx):
        yield await anext(ctx.requests)

    source = RequestSource(source)
    async with serving(one) as (_, router):
        stream = await router.generate(source)
        assert len(await stream.collect()) == 1
        assert not stream.stopped
        await source.closed(*(["waits"] if source.items else []))


@pytest.mark.parametrize("source", [None, [1]], ids=["busy", "waiting"])
async def test_an_engine_that_raises_closes_the_iterator_and_is_an_engine_error(source):
    async def broken(request, ctx):
        await anext(ctx.requests)
        yield "first"
        raise LookupError("no such water")

    source = RequestSource(source)
    async with serving(broken) as (_, router):
        stream = await router.generate(source)
        assert await anext(stream) == "first"
        with pytest.raises(hr.EngineError, match="no such water"):
            await anext(stream)
        await source.closed(*(["waits"] if source.items else []))


async def test_a_single_answer_closes_the_iterator():
    async def one(request, ctx):
        return await anext(ctx.requests)

    source = RequestSource(["answer"])
    async with serving(one) as (_, router):
        assert await router.call(source) == "answer"
        await source.closed("waits")


async def test_requests_cannot_be_read_when_the_answer_has_ended():
    kept = []

    async def keeps(request, ctx):
        kept.append(ctx)
        yield await anext(ctx.requests)

    async with serving(keeps) as (_, router):
        assert await (await router.generate(RequestSource([1, 2]))).collect() == [1]
        # Not an end: the caller's stream had more.
        with pytest.raises(StreamKilled):
            await anext(kept[0].requests)


async def test_a_task_that_still_reads_when_the_answer_ends_is_told():
    reading = []

    async def leaves(request, ctx):
        reading.append(asyncio.ensure_future(anext(ctx.requests)))
        await asyncio.sleep(0)
        return "left"

    async with serving(leaves) as (_, router):
        assert await router.call(RequestSource([])) == "left"
        with pytest.raises(StreamKilled):
            await reading[0]


# --- the iterator first


class Broken(Exception):
    pass


async def breaks(items, error):
    for item in items:
        yield item
    raise error


async def test_what_the_iterator_raises_is_raised_by_the_loop_over_the_answer():
    engine, error = EchoEngine(), Broken("the microphone is gone")
    async with serving(engine) as (_, router):
        stream = await router.generate(breaks([1, 2], error))
        items = []
        with pytest.raises(Broken, match="the microphone is gone") as caught:
            async for item in stream:
                items.append(item)
        assert caught.value is error
        assert items in ([], [1], [1, 2])
        assert "breaks" in [entry.name for entry in caught.traceback], "its own traceback"
        await engine.cancelled()
        # Asked again it says so, without keeping the exception alive.
        with pytest.raises(hr.HeadraceError, match="request stream failed: Broken: the microphone is gone"):
            await anext(stream)


@pytest.mark.parametrize("how", ["generate", "call"])
async def test_what_the_iterator_raises_is_raised_by_the_await_while_there_is_no_answer(how):
    cancelled = Log()

    async def collects(request, ctx):
        try:
            return await ctx.requests.collect()
        except asyncio.CancelledError:
            cancelled.note("cancelled")
            raise

    error = Broken()
    async with serving(collects) as (_, router):
        with pytest.raises(Broken) as caught:
            await getattr(router, how)(breaks([1, 2], error))
        assert caught.value is error
        await eventually(lambda: cancelled == ["cancelled"])


@pytest.mark.parametrize("error", [StopIteration(3), StopAsyncIteration()])
async def test_an_iterator_that_raises_the_end_of_something_else_is_a_failure(error):
    class Odd:
        def __aiter__(self):
            return self

        def __anext__(self):
            return self

        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            raise error

    async with serving(echo_requests) as (_, router):
        stream = await router.generate(Odd())
        if isinstance(error, StopAsyncIteration):
            assert await stream.collect() == []
        else:
            # Python's own coroutines turn it into this.
            with pytest.raises(RuntimeError, match="StopIteration"):
                await stream.collect()


async def test_an_iterable_that_makes_no_iterator_is_a_type_error():
    class Odd:
        def __aiter__(self):
            return 1

    engine = EchoEngine()
    async with serving(engine) as (_, router):
        with pytest.raises(TypeError, match="aiter"):
            await (await router.generate(Odd())).collect()


async def test_an_item_that_cannot_be_sent_is_a_type_error_with_its_path():
    engine, source = EchoEngine(), RequestSource([1, {"a": [0, object()]}])
    async with serving(engine) as (_, router):
        with pytest.raises(TypeError, match=r"item\['a'\]\[1\] of type builtins.object"):
            await (await router.generate(source)).collect()
        await source.closed()
        await engine.cancelled()


async def test_an_item_over_the_limit_names_its_setting():
    engine, source = EchoEngine(), RequestSource([bytes(1000), bytes(1001)])
    async with serving(engine, max_message_bytes=1000) as (_, router):
        with pytest.raises(hr.PayloadTooLarge, match="max_message_bytes=") as caught:
            await (await router.generate(source)).collect()
        assert (caught.value.limit, caught.value.actual) == (1000, 1001)
        await source.closed()
        await engine.cancelled()


async def test_an_iterator_that_is_cancelled_from_elsewhere_cancels_its_caller():
    engine, source = EchoEngine(), RequestSource([1])
    async with serving(engine) as (_, router):
        stream = await router.generate(source)
        assert await anext(stream) == 1
        for task in asyncio.all_tasks():
            if task.get_name() == "headrace request stream":
                task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await anext(stream)
        await engine.cancelled()


async def test_what_does_not_fit_the_type_of_requests_is_the_engines_affair():
    async def echoes(items: hr.RequestStream[int]):
        async for item in items:
            yield item

    async with serving(echoes, request_type=int) as (_, router):
        source = RequestSource([1, "two"])
        stream = await router.generate(source)
        assert await anext(stream) == 1
        with pytest.raises(hr.EngineError) as caught:
            await anext(stream)
        assert caught.value.engine_type == msgspec.ValidationError.__name__
        await eventually(lambda: source.log)
