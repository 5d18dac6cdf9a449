"""Requests that are streams, when the caller leaves, time runs out or the connection goes: the caller's
iterator is closed, the engine cancelled, and nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal

import headrace as hr
import pytest

from support import (
    EchoEngine,
    Log,
    RequestSource,
    echo_requests,
    eventually,
    routing,
    run_script,
    serving,
    worker_process,
)

pytestmark = pytest.mark.asyncio


@contextlib.contextmanager
def loop_errors():
    """What reaches the exception handler of the running loop."""
    loop, seen = asyncio.get_running_loop(), Log()
    loop.set_exception_handler(lambda _, context: seen.note(context["exception"]))
    try:
        yield seen
    finally:
        loop.set_exception_handler(None)


@pytest.mark.parametrize("how", ["cancel", "kill", "aclose", "drop", "async with", "break"])
@pytest.mark.parametrize("source", [None, [1]], ids=["busy", "waiting"])
async def test_however_a_caller_leaves_the_iterator_is_closed_and_the_engine_cancelled(how, source):
    engine, source = EchoEngine(), RequestSource(source)

    async def first(items):
        async for _ in items:
            if how == "break":
                break
            entered.set()
            await asyncio.Event().wait()

    async with serving(engine) as (_, router):
        entered = asyncio.Event()
        if how == "cancel":
            task = asyncio.ensure_future(first(router.generate(source)))
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "async with":
            async with router.generate(source) as stream:
                await anext(stream)
        elif how == "break":
            await first(router.generate(source))
        else:
            stream = await router.generate(source)
            await anext(stream)
            if how == "drop":
                del stream
                gc.collect()
            elif how == "kill":
                stream.kill()
            else:
                await stream.aclose()
        await engine.cancelled()
        await eventually(lambda: source.log and source.log[-1] in ("GeneratorExit", "CancelledError"))


@pytest.mark.parametrize("how", ["generate", "call"])
async def test_cancelling_a_call_that_waits_for_its_answer_closes_the_iterator(how):
    cancelled = Log()

    async def silent(request, ctx):
        try:
            return await ctx.requests.collect()
        finally:
            cancelled.note(ctx.is_killed)

    source = RequestSource([1])
    async with serving(silent) as (_, router):
        task = asyncio.ensure_future(_await(getattr(router, how)(source)))
        await eventually(lambda: source.log == ["waits"])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await source.closed("waits")
        await eventually(lambda: cancelled == [True])


async def _await(call):
    return await call


async def test_a_request_that_is_cancelled_in_the_queue_never_runs_and_its_iterator_is_closed():
    entered, release, source = asyncio.Event(), asyncio.Event(), RequestSource()

    async def blocks(request, ctx):
        assert not ctx.has_requests
        entered.set()
        await release.wait()

    async with serving(blocks, concurrency=1) as (worker, router):
        held = asyncio.ensure_future(router.call(None))
        await entered.wait()
        queued = asyncio.ensure_future(_await(router.generate(source)))
        await eventually(lambda: worker.stats()["queued"] == 1)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        await source.closed()
        await eventually(lambda: worker.stats()["queued"] == 0)
        release.set()
        await held


async def test_an_iterator_may_end_its_own_call():
    engine, log = EchoEngine(), Log()
    async with serving(engine) as (_, router):

        async def suicidal():
            try:
                yield 1
                await eventually(lambda: log == ["read"])
                stream.kill()
                yield 2
                await asyncio.Event().wait()
            finally:
                log.note("closed")

        stream = await router.generate(suicidal())
        assert await anext(stream) == 1
        log.note("read")
        assert await stream.collect() == []
        await eventually(lambda: log == ["read", "closed"])
        await engine.cancelled()


async def test_an_iterator_that_will_not_be_cancelled_is_closed_at_its_next_item():
    engine, log = EchoEngine(), Log()

    async def stubborn():
        try:
            yield 1
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                log.note("ignored")
            yield 2
        except GeneratorExit:
            log.note("closed")
            raise

    async with serving(engine) as (_, router):
        stream = await router.generate(stubborn())
        assert await anext(stream) == 1
        stream.kill()
        await eventually(lambda: log == ["ignored", "closed"])
        await engine.cancelled()


async def test_what_an_iterator_raises_as_it_is_closed_goes_to_the_loops_handler():
    async def clumsy(how):
        try:
            yield 1
            if how == "waiting":
                await asyncio.Event().wait()
            while True:
                yield 2
        finally:
            raise RuntimeError(how)

    engine = EchoEngine()
    async with serving(engine) as (_, router):
        for how in ("waiting", "busy"):
            with loop_errors() as seen:
                stream = await router.generate(clumsy(how))
                assert await anext(stream) == 1
                stream.kill()
                await eventually(lambda: seen)
                assert [str(error) for error in seen] == [how]
            engine.log.clear()


async def test_a_failure_that_nobody_reads_goes_to_the_loops_handler():
    engine, log = EchoEngine(), Log()

    async def breaks():
        yield 1
        await eventually(lambda: log)
        raise RuntimeError("unread")

    async with serving(engine) as (_, router):
        stream = await router.generate(breaks())
        assert await anext(stream) == 1
        log.note("read")
        await eventually(lambda: not router.stats()["streams"])
        with loop_errors() as seen:
            stream.kill()
            stream.kill()
            assert [str(error) for error in seen] == ["unread"]
        await engine.cancelled()


# --- neither of them


async def test_without_a_worker_the_iterator_never_begins():
    source = RequestSource()
    async with hr.Router("127.0.0.1:1", instance_timeout=0.05) as router:
        with pytest.raises(hr.CannotConnect):
            await router.generate(source)
        await eventually(lambda: len(asyncio.all_tasks()) == 1)
        assert source.log == []


async def test_a_deadline_closes_the_iterator_and_cancels_the_engine():
    engine, source = EchoEngine(), RequestSource([1])
    async with serving(engine) as (_, router):
        stream = await router.generate(source, timeout=0.1)
        assert await anext(stream) == 1
        with pytest.raises(hr.DeadlineExceeded):
            await anext(stream)
        await source.closed("waits")
        await engine.cancelled()


async def test_an_item_timeout_counts_while_the_caller_waits_whoever_is_slow():
    engine, source = EchoEngine(), RequestSource([1])
    async with serving(engine) as (_, router):
        stream = await router.generate(source, item_timeout=0.05)
        assert await anext(stream) == 1
        with pytest.raises(hr.ItemTimeout):
            await anext(stream)
        await source.closed("waits")
        await engine.cancelled()


async def test_a_killed_worker_closes_the_iterator_after_the_items_that_came():
    async with worker_process() as (process, address), routing(address) as router:
        source = RequestSource([1, 2, 3])
        stream = await router.generate(source, endpoint="mirror")
        assert [await anext(stream) for _ in range(3)] == [1, 2, 3]
        process.signal(signal.SIGKILL)
        with pytest.raises(hr.Disconnected) as caught:
            await anext(stream)
        assert caught.value.maybe_executed
        assert caught.value.items == 3
        await source.closed("waits")
        assert router.stats()["retries_total"] == 0


async def test_a_killed_router_cancels_an_engine_that_reads_its_requests():
    engine = EchoEngine()
    async with (
        hr.serve(engine) as worker,
        worker_process("reader.py", worker.address, "stream") as (process, line),
    ):
        assert line == "read 1"
        process.signal(signal.SIGKILL)
        await engine.cancelled()
        await eventually(lambda: not any(worker.stats()[key] for key in ("links", "running")))


@pytest.mark.parametrize("side", ["router", "worker"])
async def test_closing_either_side_closes_the_iterator(side):
    engine, source = EchoEngine(), RequestSource([1])
    async with hr.serve(engine) as worker, hr.Router(worker.address) as router:
        stream = await router.generate(source)
        assert await anext(stream) == 1
        await (router if side == "router" else worker).aclose()
        with pytest.raises(hr.Disconnected):
            await anext(stream)
        await source.closed("waits")
        await engine.cancelled()


async def test_a_drain_lets_a_request_stream_finish():
    heard = asyncio.Event()

    async def speech():
        yield 1
        await heard.wait()
        for number in range(2, 500):
            yield number

    async with hr.serve(echo_requests) as worker, hr.Router(worker.address) as router:
        stream = await router.generate(speech())
        assert await anext(stream) == 1
        draining = asyncio.ensure_future(worker.drain())
        await eventually(lambda: router.instances()[0].state != "up")
        heard.set()
        assert await stream.collect() == list(range(2, 500))
        await draining


async def test_a_loop_that_ends_closes_iterators_and_says_nothing():
    code = """
import asyncio, headrace as hr

async def echo(request, ctx):
    async for item in ctx.requests:
        yield item

async def source():
    try:
        yield 1
        await asyncio.Event().wait()
    finally:
        print("closed", flush=True)

async def main():
    worker = await hr.serve(echo)
    router = hr.Router(worker.address)
    stream = await router.generate(source())
    print(await anext(stream), flush=True)
    return worker, router, stream

kept = asyncio.run(main())
print("ended")
"""
    assert await asyncio.to_thread(run_script, code) == (0, "1\nclosed\nended\n", "")
