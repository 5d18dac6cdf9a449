"""However a caller stops reading, its engine is cancelled; a stop lets it finish; neighbours go on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading

import headrace as hr
import pytest

from support import Log, eventually, idle, serving

pytestmark = pytest.mark.asyncio


class Endless:
    """An engine that yields numbers until it is cancelled, and notes how it ended."""

    def __init__(self) -> None:
        self.log = Log()
        self.started = asyncio.Event()

    async def generate(self, request, ctx):
        self.started.set()
        number = 0
        try:
            while True:
                yield number
                number += 1
                await asyncio.sleep(0.001)
        except BaseException as error:
            self.log.note(type(error).__name__)
            self.log.note(ctx.is_killed)
            raise

    async def cancelled(self) -> None:
        await eventually(lambda: len(self.log) == 2)
        assert self.log[0] in ("CancelledError", "GeneratorExit")
        assert self.log[1] is True


async def test_breaking_out_of_a_loop_over_a_call_cancels_the_engine():
    engine = Endless()
    async with serving(engine) as (_, router):
        async for item in await router.generate(None):
            if item == 3:
                break
        await engine.cancelled()


async def test_leaving_async_with_cancels_the_engine():
    engine = Endless()
    async with serving(engine) as (_, router):
        async with router.generate(None) as stream:
            assert await anext(stream) == 0
        await engine.cancelled()
        assert [item async for item in stream] == []


@pytest.mark.parametrize("how", ["kill", "aclose", "aclose unawaited"])
async def test_closing_a_stream_cancels_the_engine_at_once(how):
    engine = Endless()
    async with serving(engine) as (_, router):
        stream = await router.generate(None)
        assert await anext(stream) == 0
        if how == "kill":
            stream.kill()
        elif how == "aclose":
            await stream.aclose()
        else:
            stream.aclose()
        assert not router.stats()["streams"]
        await engine.cancelled()
        # Closing twice is no error.
        await stream.aclose()


async def test_dropping_a_stream_cancels_the_engine():
    engine = Endless()
    async with serving(engine) as (_, router):
        stream = await router.generate(None)
        assert await anext(stream) == 0
        del stream
        gc.collect()
        await engine.cancelled()


async def test_dropping_a_stream_on_another_thread_cancels_the_engine():
    engine = Endless()
    async with serving(engine) as (_, router):
        held = [await router.generate(None)]
        assert await anext(held[0]) == 0
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        await engine.cancelled()


async def test_cancelling_the_reading_task_cancels_the_engine():
    engine = Endless()
    async with serving(engine) as (_, router):
        seen = []

        async def read() -> None:
            async for item in await router.generate(None):
                seen.append(item)

        task = asyncio.ensure_future(read())
        await eventually(lambda: len(seen) > 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.cancelled()


async def test_a_wait_that_times_out_cancels_the_engine():
    entered, log = asyncio.Event(), Log()

    async def silent(request):
        entered.set()
        try:
            await asyncio.Event().wait()
            yield 1
        except asyncio.CancelledError:
            log.note("cancelled")
            raise

    async with serving(silent) as (_, router):
        stream = await router.generate(None)
        await entered.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
        await eventually(lambda: log == ["cancelled"])
        async with router.generate(None) as stream:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    async for _ in stream:
                        pass
        await eventually(lambda: log == ["cancelled"] * 2)


@pytest.mark.parametrize("how", ["generate", "call"])
async def test_cancelling_a_call_that_waits_for_its_answer_cancels_the_engine(how):
    entered, log = asyncio.Event(), Log()

    async def silent(request):
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.note("cancelled")
            raise

    async with serving(silent) as (_, router):

        async def ask() -> object:
            return await (router.call(None) if how == "call" else router.generate(None))

        task = asyncio.ensure_future(ask())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: log == ["cancelled"])


async def test_a_cancelled_call_that_waits_for_an_instance_leaves_nothing():
    async with hr.Router("127.0.0.1:1") as router:
        task = asyncio.ensure_future(router.call(None))
        await eventually(lambda: router.stats()["in_flight"] == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert router.stats()["in_flight"] == 0


async def test_a_queued_request_that_is_cancelled_never_runs():
    release, ran = asyncio.Event(), Log()

    async def engine(request):
        ran.note(request)
        await release.wait()
        return request

    async with serving(engine, concurrency=1) as (worker, router):
        first = asyncio.ensure_future(router.call(1))
        await eventually(lambda: worker.stats()["running"] == 1)
        second = asyncio.ensure_future(router.call(2))
        await eventually(lambda: worker.stats()["queued"] == 1)
        second.cancel()
        await eventually(lambda: worker.stats()["queued"] == 0)
        release.set()
        assert await first == 1
        assert await router.call(3) == 3
        assert ran == [1, 3]


async def test_an_engine_that_never_awaits_is_killed_and_its_neighbours_go_on():
    log = Log()

    async def greedy(request):
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            log.note("closed")

    async def patient(request):
        for number in range(50):
            await asyncio.sleep(0.001)
            yield number

    async with serving({"greedy": greedy, "patient": patient}) as (_, router):
        streams = [await router.generate(None, endpoint="greedy") for _ in range(4)]

        async def read(stream) -> None:
            async for _ in stream:
                pass

        readers = [asyncio.ensure_future(read(stream)) for stream in streams]
        neighbour = await (await router.generate(None, endpoint="patient")).collect()
        assert neighbour == list(range(50))
        for stream in streams:
            stream.kill()
        await asyncio.gather(*readers)
        await eventually(lambda: len(log) == 4)


async def test_an_engine_that_swallows_its_cancellation_is_told_so_by_the_next_push():
    log = Log()

    async def stubborn(request, ctx):
        yield 0
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.note("swallowed")
        try:
            yield 1
            log.note("went on")
        finally:
            log.note("closed")

    async with serving(stubborn) as (_, router):
        stream = await router.generate(None)
        assert await anext(stream) == 0
        stream.kill()
        await eventually(lambda: len(log) >= 2)
        assert log == ["swallowed", "closed"]


async def test_a_permit_is_held_until_the_cancelled_engine_has_cleaned_up():
    clean_up, entered = asyncio.Event(), asyncio.Event()

    async def careful(request):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await clean_up.wait()
        yield 1

    async with serving(careful, concurrency=1, queue=0) as (worker, router):
        stream = await router.generate(None)
        await entered.wait()
        stream.kill()
        del stream
        await eventually(lambda: worker.stats()["streams"] == 0)
        assert worker.stats()["running"] == 1
        with pytest.raises(hr.Overloaded):
            await router.generate(None)
        clean_up.set()
        await eventually(lambda: worker.stats()["running"] == 0)


async def test_stop_lets_the_engine_finish():
    async def polite(request, ctx):
        number = 0
        while not ctx.is_stopped:
            yield number
            number += 1
            await asyncio.sleep(0.001)
        yield "bye"

    async with serving(polite) as (_, router):
        stream = await router.generate(None)
        assert await anext(stream) == 0
        assert not stream.stopped
        stream.stop()
        stream.stop()
        rest = await stream.collect()
        assert rest[-1] == "bye"
        assert rest[:-1] == list(range(1, len(rest)))
        assert stream.stopped


async def test_an_engine_that_waits_for_stopped_is_woken_by_stop_and_by_kill():
    log = Log()

    async def waits(request, ctx):
        yield 1
        await ctx.stopped()
        log.note((ctx.is_stopped, ctx.is_killed))
        # It is stopped already, so this is done at once.
        await ctx.stopped()
        yield 2

    async with serving(waits) as (_, router):
        stream = await router.generate(None)
        assert await anext(stream) == 1
        stream.stop()
        assert await stream.collect() == [2]
        assert stream.stopped
        assert log == [(True, False)]

    async def watches(request, ctx):
        async def watch() -> None:
            await ctx.stopped()
            log.note((ctx.is_stopped, ctx.is_killed))

        watcher = asyncio.ensure_future(watch())
        yield 1
        try:
            await asyncio.Event().wait()
        finally:
            await watcher

    log.clear()
    async with serving(watches) as (_, router):
        stream = await router.generate(None)
        assert await anext(stream) == 1
        stream.kill()
        await eventually(lambda: log == [(True, True)])


async def test_ctx_stopped_can_be_raced_and_abandoned():
    async def races(request, ctx):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ctx.stopped(), 0.01)
        yield 1
        stopped = asyncio.ensure_future(ctx.stopped())
        done, _ = await asyncio.wait({stopped}, timeout=0.01)
        assert not done
        stopped.cancel()
        yield 2

    async with serving(races) as (_, router):
        assert await (await router.generate(None)).collect() == [1, 2]


async def test_an_engine_that_stops_itself_ends_as_stopped():
    async def sated(request, ctx):
        yield 1
        ctx.stop_generating()
        assert ctx.is_stopped
        assert not ctx.is_killed
        yield 2

    async with serving(sated) as (_, router):
        stream = await router.generate(None)
        assert await stream.collect() == [1, 2]
        assert stream.stopped


async def test_stop_after_the_end_changes_nothing():
    async def one(request):
        yield 1

    async with serving(one) as (_, router):
        stream = await router.generate(None)
        assert await stream.collect() == [1]
        stream.stop()
        stream.kill()
        assert not stream.stopped


async def test_hundreds_of_cancelled_calls_leave_nothing():
    async def slow(request):
        for number in range(100):
            await asyncio.sleep(0.001)
            yield number

    async with serving(slow, concurrency=32, queue=1000) as (worker, router):

        async def read(after: int) -> None:
            async with asyncio.timeout(0.0005 * after):
                await (await router.generate(None)).collect()

        # Some are cancelled between the making of the engine's task and its first step.
        for _ in range(5):
            outcomes = await asyncio.gather(*map(read, range(200)), return_exceptions=True)
            assert all(each is None or isinstance(each, TimeoutError) for each in outcomes)
            await eventually(lambda: idle(worker, router))
