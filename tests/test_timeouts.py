"""Deadlines and item timeouts: in every phase the caller is told in time and the engine is cancelled."""

from __future__ import annotations

import asyncio
import time

import headrace as hr
import pytest

from support import Log, eventually, serving

pytestmark = pytest.mark.asyncio

SLACK = 3.0
"""Seconds by which a busy test machine may be late. The core's own tests bound the precision."""


class Slow:
    """Yields a number every `gap` seconds after `before` seconds; notes that it was cancelled."""

    def __init__(self, before: float = 0, gap: float = 0) -> None:
        self.before, self.gap = before, gap
        self.log = Log()

    async def generate(self, request):
        try:
            await asyncio.sleep(self.before)
            for number in range(1000):
                yield number
                await asyncio.sleep(self.gap)
        except BaseException as error:
            self.log.note(type(error).__name__)
            raise

    async def cancelled(self) -> None:
        await eventually(lambda: self.log)
        assert self.log[0] in ("CancelledError", "GeneratorExit")


async def test_a_deadline_that_passes_before_the_first_item_cancels_the_engine():
    engine = Slow(before=60)
    async with serving(engine) as (worker, router):
        began = time.monotonic()
        stream = await router.generate(None, timeout=0.1)
        with pytest.raises(hr.DeadlineExceeded, match="timeout=") as caught:
            await anext(stream)
        assert 0.1 <= time.monotonic() - began < 0.1 + SLACK
        assert caught.value.phase == "accepted"
        assert caught.value.elapsed >= 0.1
        assert caught.value.instance_id == worker.instance_id
        assert isinstance(caught.value, TimeoutError)
        await engine.cancelled()


async def test_a_deadline_that_passes_between_items_comes_after_the_items():
    engine = Slow(gap=0.01)
    async with serving(engine) as (_, router):
        items = []
        with pytest.raises(hr.DeadlineExceeded) as caught:
            async for item in await router.generate(None, timeout=0.2):
                items.append(item)
        assert items == list(range(len(items)))
        assert items
        assert caught.value.phase == "streaming"
        assert caught.value.items == len(items)
        await engine.cancelled()


async def test_a_deadline_that_passes_while_queued_is_told_and_the_request_never_runs():
    release, ran = asyncio.Event(), Log()

    async def engine(request):
        ran.note(request)
        await release.wait()
        return request

    async with serving(engine, concurrency=1) as (worker, router):
        first = asyncio.ensure_future(router.call(1))
        await eventually(lambda: worker.stats()["running"] == 1)
        with pytest.raises(hr.DeadlineExceeded) as caught:
            await router.call(2, timeout=0.1)
        assert caught.value.phase == "accepted"
        await eventually(lambda: worker.stats()["queued"] == 0)
        release.set()
        assert await first == 1
        assert ran == [1]


async def test_a_deadline_that_passes_before_anything_was_sent_is_told():
    async with hr.Router("127.0.0.1:1", instance_timeout=60) as router:
        with pytest.raises(hr.DeadlineExceeded) as caught:
            await router.call(None, timeout=0.1)
        assert caught.value.phase == "unsent"
        assert caught.value.elapsed >= 0.1
        assert caught.value.instance_id is None
        assert router.stats()["in_flight"] == 0


async def test_the_deadline_of_a_sync_engine_is_kept_though_it_goes_on():
    entered, release = asyncio.Event(), Log()
    loop = asyncio.get_running_loop()

    def slow(request):
        loop.call_soon_threadsafe(entered.set)
        while not release:
            time.sleep(0.001)

    async with serving(slow) as (worker, router):
        with pytest.raises(hr.DeadlineExceeded):
            await router.call(None, timeout=0.2)
        assert worker.stats()["running"] == 1
        release.note("go")


@pytest.mark.parametrize("how", ["call", "first item", "later item"])
async def test_no_item_in_time_is_an_item_timeout_that_cancels_the_engine(how):
    engine = Slow(before=0 if how == "later item" else 60, gap=60)
    async with serving(engine) as (_, router):
        began = time.monotonic()
        with pytest.raises(hr.ItemTimeout, match="item_timeout=") as caught:
            if how == "call":
                await router.call(None, item_timeout=0.1)
            else:
                stream = await router.generate(None, item_timeout=0.1)
                if how == "later item":
                    assert await anext(stream) == 0
                await anext(stream)
        assert 0.1 <= time.monotonic() - began < 0.1 + SLACK
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.items == (1 if how == "later item" else 0)
        assert caught.value.phase == ("streaming" if how == "later item" else "accepted")
        await engine.cancelled()


async def test_the_item_timeout_counts_only_while_the_caller_waits():
    go_on = asyncio.Event()

    async def engine(request):
        yield 1
        await go_on.wait()
        yield 2

    async with serving(engine) as (_, router):
        stream = await router.generate(None, item_timeout=0.15)
        assert await anext(stream) == 1
        # The time itself is the subject here: the caller is busy for longer than the timeout.
        await asyncio.sleep(0.4)
        go_on.set()
        assert await anext(stream) == 2
        assert [item async for item in stream] == []


async def test_a_routers_timeouts_are_the_default_and_none_must_be_written_out():
    engine = Slow(before=60)
    async with serving(engine, router={"timeout": 0.1}) as (_, router):
        with pytest.raises(hr.DeadlineExceeded):
            await router.call(None)
        with pytest.raises(hr.ItemTimeout):
            await router.call(None, timeout=None, item_timeout=0.1)
    async with serving(engine, router={"item_timeout": 0.1}) as (_, router):
        with pytest.raises(hr.ItemTimeout):
            await router.call(None)
        with pytest.raises(hr.DeadlineExceeded):
            await router.call(None, timeout=0.2, item_timeout=None)


async def test_a_consumer_that_leaves_a_full_window_unread_is_told_and_its_engine_cancelled():
    log = Log()

    async def fast(request):
        try:
            while True:
                yield bytes(16 * 1024)
        finally:
            log.note("closed")

    settings = {"stream_window": 64 * 1024, "slow_consumer_timeout": 0.2}
    async with serving(fast, router=settings) as (_, router):
        stream = await router.generate(None)
        await anext(stream)
        await eventually(lambda: log == ["closed"])
        read = 1
        with pytest.raises(hr.SlowConsumer, match="slow_consumer_timeout=") as caught:
            async for _ in stream:
                read += 1
        assert read > 1, "what had arrived is still there"
        assert (caught.value.phase, caught.value.items) == ("streaming", read)


async def test_a_consumer_that_reads_slowly_but_reads_is_not_too_slow():
    async def fast(request):
        for _ in range(40):
            yield bytes(16 * 1024)

    settings = {"stream_window": 64 * 1024, "slow_consumer_timeout": 0.5}
    async with serving(fast, router=settings) as (_, router):
        items = 0
        async for _ in await router.generate(None):
            items += 1
            # The pace is the subject here: all in all slower than the timeout, each item faster.
            await asyncio.sleep(0.02)
        assert items == 40


async def test_asyncio_timeout_around_a_call_is_asyncios():
    engine = Slow(before=60)
    async with serving(engine) as (_, router):
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.05):
                await router.call(None)
        assert not isinstance(caught.value, hr.HeadraceError)
        await engine.cancelled()
