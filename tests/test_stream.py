"""What a caller reads is what the engine yielded, and a clean end means that the engine ended cleanly."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import headrace as hr
import numpy
import pytest

from support import Log, eventually, serving

pytestmark = pytest.mark.asyncio


async def count(request):
    for number in range(request):
        yield number


async def items_until_error(stream) -> tuple[list[object], BaseException]:
    """The items of a stream that fails, and what it fails with."""
    items = []
    with pytest.raises(Exception) as caught:
        async for item in stream:
            items.append(item)
    return items, caught.value


@pytest.mark.parametrize("items", [3, 1, 0, 5000])
async def test_a_stream_has_the_engines_items_then_ends(items):
    async with serving(count) as (_, router):
        stream = await router.generate(items)
        assert [item async for item in stream] == list(range(items))
        assert not stream.stopped
        assert stream.resumed == 0
        # The end is remembered.
        assert [item async for item in stream] == []


async def test_a_call_is_a_stream_also_without_await():
    async with serving(count) as (_, router):
        assert [item async for item in router.generate(3)] == [0, 1, 2]
        async with router.generate(3) as stream:
            assert [item async for item in stream] == [0, 1, 2]
        async with await router.generate(3) as stream:
            assert await anext(stream) == 0
        async with contextlib.aclosing(await router.generate(3)) as stream:
            assert await anext(stream) == 0


async def test_collect_gives_all_items_as_a_list():
    async with serving(count) as (_, router):
        assert await (await router.generate(3)).collect() == [0, 1, 2]
        assert await (await router.generate(0)).collect() == []
        assert await (await router.generate(20_000)).collect() == list(range(20_000))


async def test_chunks_are_lists_of_what_is_ready():
    async with serving(count) as (_, router):
        chunks = [chunk async for chunk in (await router.generate(1000)).chunks()]
        assert all(chunks)
        assert [item for chunk in chunks for item in chunk] == list(range(1000))
        assert len(chunks) < 1000
        assert [chunk async for chunk in (await router.generate(0)).chunks()] == []


@pytest.mark.parametrize("reader", ["collect", "chunks"])
async def test_collect_and_chunks_fail_as_the_stream_does(reader):
    async def broken(request):
        yield 1
        yield 2
        raise KeyError("gone")

    async with serving(broken) as (_, router):
        stream = await router.generate(None)
        with pytest.raises(hr.EngineError, match="gone"):
            if reader == "collect":
                await stream.collect()
            else:
                async for _ in stream.chunks():
                    pass


@pytest.mark.parametrize("before", [0, 1, 3])
async def test_what_an_engine_raises_comes_after_its_items(before):
    async def broken(request):
        for number in range(before):
            yield number
        raise RuntimeError("no more water")

    async with serving(broken) as (worker, router):
        stream = await router.generate(None, request_id="request-7")
        items, error = await items_until_error(stream)
        assert items == list(range(before))
        assert isinstance(error, hr.EngineError)
        assert error.engine_type == "RuntimeError"
        assert error.engine_message == "no more water"
        assert error.engine_traceback is None
        assert error.instance_id == worker.instance_id
        assert error.request_id == "request-7"
        assert error.items == before
        assert error.phase == ("streaming" if before else "accepted")
        for part in ("RuntimeError", "no more water", worker.instance_id, "request-7"):
            assert part in str(error)
        # Asked again it says so again: a failed stream never ends cleanly.
        with pytest.raises(hr.EngineError, match="no more water"):
            await anext(stream)


async def test_what_a_coroutine_raises_before_it_has_a_stream_is_raised_by_the_await():
    async def broken(request):
        raise LookupError("no such model")

    async with serving(broken) as (_, router):
        with pytest.raises(hr.EngineError, match="no such model") as caught:
            await router.generate(None)
        assert caught.value.engine_type == "LookupError"
        assert caught.value.phase == "accepted"
        with pytest.raises(hr.EngineError, match="no such model"):
            await router.call(None)


async def test_an_engines_own_cancelled_error_is_an_engine_error():
    async def broken(request):
        yield 1
        raise asyncio.CancelledError("mine")

    async with serving(broken) as (_, router):
        items, error = await items_until_error(await router.generate(None))
        assert items == [1]
        assert isinstance(error, hr.EngineError)
        assert error.engine_type == "CancelledError"
        assert error.engine_message == "mine"


async def test_tracebacks_are_told_only_when_exposed():
    async def broken(request):
        yield 1
        raise RuntimeError("deep inside")

    async with serving(broken, expose_tracebacks=True) as (_, router):
        _, error = await items_until_error(await router.generate(None))
        assert "in broken" in error.engine_traceback
        assert "deep inside" in error.engine_traceback


async def test_one_object_mutated_after_each_yield_arrives_as_it_was_when_yielded():
    mebibyte = 1024 * 1024

    async def reuses(request):
        entry, raw, array = {"step": 0}, bytearray(8), numpy.zeros(mebibyte // 8, numpy.int64)
        for step in range(4):
            entry["step"] = step
            raw[0] = step
            array[:] = step
            yield entry
            yield raw
            yield array
            entry["step"] = raw[0] = 255
            array[:] = -1

    async with serving(reuses) as (_, router):
        items = await (await router.generate(None)).collect()
        assert items[0::3] == [{"step": step} for step in range(4)]
        assert items[1::3] == [bytes([step, *bytes(7)]) for step in range(4)]
        for step, array in enumerate(items[2::3]):
            assert array.shape == (mebibyte // 8,)
            assert (array == step).all()


@pytest.mark.parametrize(
    ("item", "path", "kind"),
    [
        ({"a": [1, {"b": object()}]}, "item['a'][1]['b']", "object"),
        (object(), "item", "object"),
        ([lambda: None], "item[0]", "function"),
        (numpy.array([object()]), "dtype object", ""),
    ],
)
async def test_an_item_that_cannot_be_encoded_fails_naming_path_and_type(item, path, kind):
    log = Log()

    async def broken(request):
        try:
            yield 1
            yield item
            log.note("went on")
        finally:
            log.note("closed")

    async with serving(broken) as (_, router):
        items, error = await items_until_error(await router.generate(None))
        assert items == [1]
        assert isinstance(error, hr.EngineError)
        assert error.engine_type == "TypeError"
        assert path in str(error)
        assert kind in str(error)
        await eventually(lambda: log)
        assert log == ["closed"]


async def test_a_value_that_contains_itself_is_refused():
    endless: list[object] = []
    endless.append(endless)

    async def broken(request):
        yield endless

    async with serving(broken) as (_, router):
        _, error = await items_until_error(await router.generate(None))
        assert isinstance(error, hr.EngineError)
        with pytest.raises(TypeError):
            router.generate(endless)


async def test_items_that_look_like_protocol_of_the_interpreter_are_items():
    special = [(), (1,), (1, 2), None, [], "", b"", {}, 0, False, "StopIteration", [None]]

    async def yields(request):
        for item in special:
            yield item

    async with serving(yields) as (_, router):
        items = await (await router.generate(None)).collect()
        # msgpack has one sequence: a tuple arrives as a list.
        assert items == [list(item) if isinstance(item, tuple) else item for item in special]

    async def one(request):
        return (request, request)

    async with serving(one) as (_, router):
        assert await router.call(1, response_type=tuple[int, int]) == (1, 1)
        assert await router.call(1, response_type=tuple[int, ...]) == (1, 1)


async def test_a_second_task_that_awaits_the_same_stream_is_refused():
    release = asyncio.Event()

    async def waits(request):
        await release.wait()
        yield 1

    async with serving(waits) as (_, router):
        stream = await router.generate(None)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already being awaited"):
            await anext(stream)
        release.set()
        assert await first == 1
        assert [item async for item in stream] == []


@pytest.mark.parametrize("items", [0, 2, 3])
async def test_call_wants_exactly_one_item(items):
    async with serving(count) as (_, router):
        with pytest.raises(hr.NotUnary, match="exactly one"):
            await router.call(items)


async def test_call_gives_the_one_item():
    async with serving(count, queue=200) as (_, router):
        assert await router.call(1) == 0
        results = await asyncio.gather(*(router.call(1) for _ in range(200)))
        assert results == [0] * 200


async def test_call_of_an_endless_engine_is_not_unary_and_ends_it():
    log = Log()

    async def endless(request):
        try:
            while True:
                yield 1
        finally:
            log.note("closed")

    async with serving(endless) as (_, router):
        with pytest.raises(hr.NotUnary):
            await router.call(None)
        await eventually(lambda: log)


async def test_a_call_is_one_call():
    async with serving(count) as (_, router):
        call = router.generate(2)
        stream = await call
        assert [item async for item in stream] == [0, 1]
        one = router.call(1)
        assert await one == 0
        with pytest.raises((RuntimeError, hr.HeadraceError)):
            await one


async def test_a_ready_stream_gives_other_tasks_their_turn():
    async with serving(count) as (_, router):
        stream = await router.generate(20_000)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.ensure_future(other())
        async for _ in stream:
            pass
        beside.cancel()
        assert turns > 100


async def test_metadata_trace_and_names_reach_the_engine():
    async def tells(request, ctx: hr.Context) -> dict[str, object]:
        return {
            "id": ctx.id,
            "metadata": ctx.metadata,
            "traceparent": ctx.traceparent,
            "endpoint": ctx.endpoint,
            "instance": ctx.instance_id,
            "remaining": ctx.remaining(),
        }

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with serving(tells) as (worker, router):
        told = await router.call(
            None, metadata={"user": "ä", "k": ""}, request_id="r-1", traceparent=trace, timeout=30
        )
        assert told["id"] == "r-1"
        assert told["metadata"] == {"user": "ä", "k": ""}
        assert told["traceparent"] == trace
        assert told["endpoint"] == "tells"
        assert told["instance"] == worker.instance_id
        # Deadlines are whole milliseconds, rounded up on each side.
        assert 25 < told["remaining"] < 30.01
        told = await router.call(None, timeout=None)
        assert (told["metadata"], told["traceparent"], told["remaining"]) == ({}, None, None)
        assert len(told["id"]) == 16
        stream = await router.generate(None, request_id="r-2")
        assert (stream.request_id, stream.instance_id) == ("r-2", worker.instance_id)


async def test_the_worker_tells_what_it_is():
    async with serving({"b": count, "a": count}) as (worker, router):
        assert worker.endpoints == ["a", "b"]
        assert worker.address.startswith("127.0.0.1:")
        await router.wait_for_instances(1)
        (instance,) = router.instances()
        assert instance.address == worker.address
        assert instance.instance_id == worker.instance_id
        assert instance.state == "up"
        assert instance.endpoints == ["a", "b"]
        assert isinstance(router.generate(1, endpoint="a").__aiter__(), AsyncIterator)
