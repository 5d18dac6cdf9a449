"""Routers and workers belong to the loop they were made on; every loop, in every thread, has its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import threading
import time

import headrace as hr
import pytest
import uvloop

from support import GUARD, eventually, serving

FACTORIES = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}

every_loop = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)


async def count(request):
    for number in range(request):
        yield number


async def serve_and_read(streams: int) -> list[list[int]]:
    async with serving(count, concurrency=streams) as (_, router):

        async def read() -> list[int]:
            return await (await router.generate(200)).collect()

        return await asyncio.gather(*(read() for _ in range(streams)))


@every_loop
def test_two_loops_in_two_threads_each_with_a_router_and_a_worker(factory):
    def work() -> list[list[int]]:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(serve_and_read(20))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(work) for _ in range(4)]
        for answer in answers:
            assert answer.result(GUARD) == [list(range(200))] * 20


@every_loop
def test_loops_of_different_threads_call_each_other(factory):
    ready: concurrent.futures.Future[str] = concurrent.futures.Future()
    done = threading.Event()

    async def worker() -> None:
        async with hr.serve(count) as served:
            ready.set_result(served.address)
            await asyncio.to_thread(done.wait)

    async def router(address: str) -> list[int]:
        async with hr.Router(address) as its_router:
            return await (await its_router.generate(500)).collect()

    def run(main) -> object:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        serving_thread = pool.submit(run, worker())
        try:
            assert run(router(ready.result(GUARD))) == list(range(500))
        finally:
            done.set()
        serving_thread.result(GUARD)


@every_loop
def test_one_loop_after_the_other_in_one_thread(factory):
    for _ in range(5):
        with asyncio.Runner(loop_factory=factory) as runner:
            assert runner.run(serve_and_read(3)) == [list(range(200))] * 3


@pytest.mark.asyncio
async def test_a_router_used_on_another_threads_loop_is_refused():
    async def uses() -> None:
        await router.call(1)

    async with serving(count) as (_, router):
        with pytest.raises(RuntimeError, match="another thread's event loop"):
            await asyncio.to_thread(asyncio.run, uses())
        assert await router.call(1) == 0


@pytest.mark.asyncio
async def test_a_router_used_on_a_thread_without_a_loop_is_refused():
    async with serving(count) as (_, router):
        with pytest.raises(RuntimeError, match="another thread"):
            await asyncio.to_thread(router.generate, 1)
        assert await router.call(1) == 0


@every_loop
def test_a_router_used_after_its_loop_has_ended_is_refused(factory):
    async def makes() -> tuple[hr.Router, hr.ResponseStream]:
        worker = await hr.serve(count)
        router = hr.Router(worker.address)
        return router, await router.generate(10**9)

    async def uses(use) -> None:
        await use()

    with asyncio.Runner(loop_factory=factory) as runner:
        router, stream = runner.run(makes())
    with asyncio.Runner(loop_factory=factory) as runner:
        with pytest.raises(RuntimeError, match="event loop"):
            runner.run(uses(lambda: router.call(1)))
        # What came before the end may still be read.
        with pytest.raises(hr.Disconnected):
            runner.run(uses(stream.collect))


@every_loop
def test_a_router_used_on_a_second_loop_of_its_thread_is_refused(factory):
    async def makes() -> hr.Router:
        worker = await hr.serve(count)
        kept.append(worker)
        router = hr.Router(worker.address)
        assert await router.call(1) == 0
        return router

    async def uses() -> None:
        await router.call(1)

    kept: list[hr.Worker] = []
    with asyncio.Runner(loop_factory=factory) as first:
        router = first.run(makes())
        second = asyncio.Runner(loop_factory=factory)
        with second, pytest.raises(RuntimeError, match="loop"):
            second.run(uses())
        assert first.run(asyncio.wait_for(_one(router), GUARD)) == 0


async def _one(router: hr.Router) -> object:
    return await router.call(1)


@every_loop
def test_a_router_may_be_made_before_its_loop(factory):
    router = hr.Router("127.0.0.1:1", instance_timeout=0.1)

    async def uses() -> None:
        with pytest.raises(hr.CannotConnect):
            await router.call(1)
        await router.aclose()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(uses())


@pytest.mark.asyncio
async def test_a_blocked_neighbour_loop_blocks_nobody():
    release = threading.Event()

    async def blocks(request):
        release.wait(GUARD)
        yield 1

    def other_loop() -> None:
        asyncio.run(other())

    async def other() -> None:
        async with hr.serve(blocks) as worker, hr.Router(worker.address) as router:
            entered.set()
            await (await router.generate(None)).collect()

    entered = threading.Event()
    thread = threading.Thread(target=other_loop)
    thread.start()
    try:
        await eventually(entered.is_set)
        async with serving(count) as (_, router):
            assert len(await (await router.generate(1000)).collect()) == 1000
    finally:
        release.set()
        await asyncio.to_thread(thread.join, GUARD)


@every_loop
def test_the_loops_debug_mode_finds_nothing(factory, caplog):
    with asyncio.Runner(loop_factory=factory, debug=True) as runner:
        runner.get_loop().slow_callback_duration = 60
        assert runner.run(serve_and_read(20)) == [list(range(200))] * 20
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


@every_loop
def test_loops_that_have_ended_give_back_their_descriptors(factory):
    async def call() -> None:
        async with serving(count) as (_, router):
            assert await (await router.generate(3)).collect() == [0, 1, 2]

    def turn_a_loop() -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(call())
        gc.collect()

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    # The last loop that ended is let go of by the next.
    turn_a_loop()
    before = descriptors()
    for _ in range(5):
        turn_a_loop()
    # The last to let go of a socket may be tokio's thread, in its own time.
    until = time.monotonic() + GUARD
    while descriptors() > before and time.monotonic() < until:
        time.sleep(0.002)
    assert descriptors() <= before
