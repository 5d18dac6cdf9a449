"""Requests that are streams: what they carry, how they flow, and who waits for whom."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator

import headrace as hr
import msgspec
import numpy
import pytest

from support import Log, echo_requests, eventually, serving

pytestmark = pytest.mark.asyncio


async def numbers(count):
    for number in range(count):
        yield number


async def each(items):
    for item in items:
        yield item


async def total(request, ctx):
    return sum(await ctx.requests.collect())


async def test_a_stream_of_requests_may_have_a_single_answer():
    async with serving(total) as (_, router):
        for count in (0, 1, 3, 1000):
            assert await router.call(numbers(count)) == sum(range(count))
            assert await (await router.generate(numbers(count))).collect() == [sum(range(count))]


async def test_a_stream_of_requests_may_have_a_stream_of_answers_in_every_form():
    async with serving(echo_requests) as (_, router):
        for count in (0, 1, 3, 300):
            expected = list(range(count))
            assert await (await router.generate(numbers(count))).collect() == expected
            assert [item async for item in router.generate(numbers(count))] == expected
            async with router.generate(numbers(count)) as stream:
                assert [item async for item in stream] == expected


class Iterator:
    """An asynchronous iterator that is no generator."""

    def __init__(self, count):
        self.left = list(range(count))

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)


class Iterable:
    """Makes an iterator each time it is iterated."""

    def __init__(self, count):
        self.count = count

    async def __aiter__(self):
        for number in range(self.count):
            yield number


@pytest.mark.parametrize("kind", [numbers, Iterator, Iterable])
async def test_every_kind_of_asynchronous_iterator_can_be_sent(kind):
    async with serving(echo_requests) as (_, router):
        for count in (0, 1, 200):
            assert await (await router.generate(kind(count))).collect() == list(range(count))


async def test_the_answer_of_one_engine_can_be_the_request_of_another():
    async def count(request):
        for number in range(request):
            yield number

    async def doubled(request, ctx):
        async for number in ctx.requests:
            yield number * 2

    async with serving({"count": count, "doubled": doubled, "total": total}) as (_, router):
        stream = await router.generate(100, endpoint="count")
        assert await (await router.generate(stream, endpoint="doubled")).collect() == list(range(0, 200, 2))
        # A call that has not begun begins when its first item is wanted.
        call = router.generate(router.generate(10, endpoint="count"), endpoint="doubled")
        assert await router.call(call, endpoint="total") == 90


async def test_every_kind_of_item_travels():
    items = [None, True, 1, -(2**63), 1.5, "text", "", b"", b"raw", {"a": [1, {"b": None}]}, bytes(70_000)]
    async with serving(echo_requests) as (_, router):
        assert await (await router.generate(each(items))).collect() == items
        arrays = [numpy.arange(5), numpy.ones((300, 300), dtype="<f4"), numpy.array([], dtype="|u1")]
        received = await (await router.generate(each(arrays))).collect()
        for sent, came in zip(arrays, received, strict=True):
            assert came.dtype == sent.dtype
            assert (came == sent).all()


async def test_an_item_arrives_as_it_was_when_it_was_yielded():
    async def reused():
        buffer, value = bytearray(b"0"), {"n": -1}
        for number in range(100):
            buffer[:] = str(number).encode()
            yield buffer
            value["n"] = number
            yield value

    async with serving(echo_requests) as (_, router):
        items = await (await router.generate(reused())).collect()
        assert items[::2] == [str(number).encode() for number in range(100)]
        assert items[1::2] == [{"n": number} for number in range(100)]


async def declared_iterator(items: AsyncIterator[int]):
    async for item in items:
        yield item


async def declared_bare(items: AsyncIterator):
    async for item in items:
        yield item


async def declared_iterable_with_ctx(items: AsyncIterable[int], ctx: hr.Context):
    assert ctx.has_requests
    assert ctx.requests is items
    async for item in items:
        yield item


async def declared_from_typing(items: typing.AsyncIterator[int]):
    async for item in items:
        yield item


async def declared_generator(items: AsyncGenerator[int, None]):
    async for item in items:
        yield item


async def declared_request_stream(items: hr.RequestStream[int]):
    async for item in items:
        yield item


async def declared_for_type_checkers_only(items: AsyncIterator[Unknown], ctx: Unknown):  # noqa: F821
    async for item in items:
        yield item


async def declared_second(prefix, items: AsyncIterator[int]):
    assert prefix == "bound"
    async for item in items:
        yield item


class Declared:
    async def generate(self, items: AsyncIterator[int], ctx):
        async for item in items:
            yield item


DECLARED = {
    "iterator": declared_iterator,
    "bare": declared_bare,
    "iterable with ctx": declared_iterable_with_ctx,
    "typing": declared_from_typing,
    "generator": declared_generator,
    "request stream": declared_request_stream,
    "type checkers": declared_for_type_checkers_only,
    "partial": functools.partial(declared_second, "bound"),
    "object": Declared(),
    "class": Declared,
}


@pytest.mark.parametrize("kind", DECLARED)
async def test_an_engine_that_declares_an_iterator_is_given_the_stream_as_its_request(kind):
    async with serving({"e": DECLARED[kind]}) as (_, router):
        assert await (await router.generate(numbers(20))).collect() == list(range(20))
        with pytest.raises(hr.HeadraceError, match=r"takes a stream of requests.*asynchronous iterator"):
            await router.generate(7)


async def test_a_coroutine_may_declare_an_iterator():
    async def longest(texts: AsyncIterator[str]) -> str:
        return max([text async for text in texts], key=len)

    async with serving(longest) as (_, router):
        assert await router.call(each(["a", "abc", "ab"])) == "abc"


async def test_an_engine_that_cannot_see_a_stream_refuses_it():
    async def no_context(request):
        yield request

    def synchronous(request, ctx):
        return request

    async with serving({"a": no_context, "b": synchronous}) as (worker, router):
        with pytest.raises(
            hr.HeadraceError, match=r"a single request.*ctx\.requests.*AsyncIterator"
        ) as caught:
            await router.generate(numbers(3), endpoint="a")
        assert type(caught.value) is hr.HeadraceError
        assert caught.value.phase == "sent"
        with pytest.raises(hr.HeadraceError, match="its engine is synchronous"):
            await router.call(numbers(3), endpoint="b")
        assert worker.stats()["rejected_total"] == 2
        assert await router.call(3, endpoint="b") == 3

    def declares(items: AsyncIterator[int]):
        return list(items)

    with pytest.raises(TypeError, match="synchronous engine cannot read a request stream"):
        hr.serve(declares)


async def test_an_engine_may_take_both_shapes():
    async def both(request, ctx):
        if ctx.has_requests:
            return ["stream", await ctx.requests.collect()]
        with pytest.raises(TypeError, match=r"ctx\.has_requests"):
            _ = ctx.requests
        return ["single", request]

    async with serving(both) as (_, router):
        assert await router.call(numbers(2)) == ["stream", [0, 1]]
        assert await router.call(7) == ["single", 7]
        assert await router.call(None) == ["single", None]


@dataclasses.dataclass
class Data:
    value: int

    def __aiter__(self):
        raise AssertionError("it is sent as a whole")


class Struct(msgspec.Struct):
    value: int

    def __aiter__(self):
        raise AssertionError("it is sent as a whole")


class Mapping(dict):
    def __aiter__(self):
        raise AssertionError("it is sent as a whole")


async def test_what_is_encoded_as_a_whole_is_no_stream():
    async def same(request, ctx):
        return [request, ctx.has_requests]

    async with serving(same) as (_, router):
        for request in (Data(1), Struct(1), Mapping(value=1)):
            assert await router.call(request) == [{"value": 1}, False]
        with pytest.raises(TypeError):
            router.call(object())


async def test_an_engine_reads_chunks():
    async def sizes(request, ctx):
        items = 0
        async for chunk in ctx.requests.chunks():
            items += len(chunk)
            yield chunk[0]
        yield items

    async with serving(sizes) as (_, router):
        answers = await (await router.generate(numbers(5000))).collect()
        assert answers[-1] == 5000
        assert answers[0] == 0
        assert len(answers) < 2500, "items that were ready came together"


async def test_items_are_decoded_into_the_type_of_requests():
    class Point(msgspec.Struct):
        x: int

    async def xs(request, ctx):
        points = ctx.requests
        while True:
            try:
                yield (await anext(points)).x
            except StopAsyncIteration:
                return
            except msgspec.ValidationError:
                yield "no point"

    async with serving(xs, request_type=Point) as (_, router):
        items = each([{"x": 1}, {"x": "one"}, Point(3)])
        assert await (await router.generate(items)).collect() == [1, "no point", 3]


async def test_an_engine_that_wants_no_more_closes_the_iterator_and_goes_on():
    log = Log()

    async def endless():
        try:
            while True:
                yield bytes(1000)
        finally:
            log.note("closed")

    async def picky(request, ctx):
        yield len(await anext(ctx.requests))
        await ctx.requests.aclose()
        assert [item async for item in ctx.requests] == []
        await eventually(lambda: log)
        for number in range(100):
            yield number
        await ctx.requests.aclose()

    async with serving(picky) as (_, router):
        assert await (await router.generate(endless())).collect() == [1000, *range(100)]
        assert log == ["closed"]


async def test_a_wait_that_times_out_loses_no_item():
    async def listens(request, ctx):
        silences = 0
        while True:
            try:
                yield await asyncio.wait_for(anext(ctx.requests), 0.005)
            except TimeoutError:
                silences += 1
                if silences == 3:
                    yield "silence"
            except StopAsyncIteration:
                return

    async with serving(listens) as (_, router):
        heard = asyncio.Event()

        async def speech():
            await heard.wait()
            for number in range(100):
                yield number

        items = []
        async for item in router.generate(speech()):
            items.append(item)
            heard.set()
        assert items == ["silence", *range(100)]


async def test_two_tasks_cannot_wait_for_the_same_requests():
    async def twice(request, ctx):
        first = asyncio.ensure_future(anext(ctx.requests))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already being awaited"):
            await anext(ctx.requests)
        yield "refused"
        yield await first

    async with serving(twice) as (_, router):
        go_on = asyncio.Event()

        async def later():
            await go_on.wait()
            yield "item"

        items = []
        async for item in router.generate(later()):
            items.append(item)
            go_on.set()
        assert items == ["refused", "item"]
