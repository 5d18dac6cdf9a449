"""A worker that dies, freezes or is blocked: the items so far arrive, then the truth, within the bound."""

from __future__ import annotations

import asyncio
import signal
import time

import headrace as hr
import pytest

from support import GUARD, eventually, routing, worker_process

pytestmark = pytest.mark.asyncio

PING = {"ping_interval": 0.2, "ping_timeout": 0.2}
"""A peer that is silent for 0.4 s is given up."""


async def test_a_killed_worker_is_disconnected_after_the_items_that_came():
    async with worker_process() as (process, address), routing(address) as router:
        stream = await router.generate({"items": 5, "hang": True}, endpoint="count")
        assert [await anext(stream) for _ in range(5)] == list(range(5))
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        process.signal(signal.SIGKILL)
        with pytest.raises(hr.Disconnected) as caught:
            await waiting
        error = caught.value
        assert error.items == 5
        assert error.phase == "streaming"
        assert error.maybe_executed
        assert error.instance_id == stream.instance_id
        assert isinstance(error, ConnectionError)
        with pytest.raises(hr.Disconnected):
            await anext(stream)
        await eventually(lambda: router.stats()["links"] == 0)


async def test_items_that_came_before_the_loss_are_still_read():
    async with worker_process() as (process, address), routing(address) as router:
        stream = await router.generate({"items": 5, "hang": True}, endpoint="count")
        # The answer to a later request shows that the items are here already.
        assert await router.call("x", endpoint="echo") == "x"
        process.signal(signal.SIGKILL)
        await eventually(lambda: router.stats()["links"] == 0)
        items = []
        with pytest.raises(hr.Disconnected):
            async for item in stream:
                items.append(item)
        assert items == list(range(5))


async def test_a_worker_killed_after_a_stop_never_looks_like_a_clean_end():
    async with worker_process() as (process, address), routing(address) as router:
        stream = await router.generate({"items": 3, "hang": True}, endpoint="count")
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        stream.stop()
        process.signal(signal.SIGKILL)
        with pytest.raises(hr.Disconnected) as caught:
            await anext(stream)
        assert caught.value.items == 3
        assert caught.value.phase == "streaming"
        assert not stream.stopped


async def test_a_call_in_flight_on_a_killed_worker_is_disconnected_not_retried():
    async with worker_process() as (process, address), routing(address) as router:
        call = asyncio.ensure_future(
            router.call({"items": 0, "hang": True}, endpoint="count", item_timeout=None)
        )
        await eventually(lambda: router.stats()["streams"] == 1)
        assert await router.call("x", endpoint="echo") == "x"
        process.signal(signal.SIGKILL)
        with pytest.raises(hr.Disconnected) as caught:
            await call
        assert caught.value.phase == "accepted"
        assert caught.value.maybe_executed
        assert router.stats()["retries_total"] == 0


async def test_a_killed_worker_that_comes_back_is_used_again(tmp_path):
    address = f"unix:{tmp_path}/worker"
    async with worker_process("at_address.py", address) as (process, _), routing(address) as router:
        first = await router.call("x")
        process.signal(signal.SIGKILL)
        await eventually(lambda: router.stats()["links"] == 0)
        async with worker_process("at_address.py", address):
            second = await router.call("x", timeout=GUARD)
            assert first == second == "x"


async def test_a_frozen_worker_is_given_up_within_the_liveness_bound():
    async with (
        worker_process("engines.py", "ping_interval=60", "ping_timeout=60") as (process, address),
        routing(address, **PING) as router,
    ):
        stream = await router.generate({"items": 2, "hang": True}, endpoint="count")
        assert [await anext(stream) for _ in range(2)] == [0, 1]
        began = time.monotonic()
        process.signal(signal.SIGSTOP)
        with pytest.raises(hr.Disconnected, match="silent") as caught:
            await anext(stream)
        assert time.monotonic() - began < 0.4 + 3
        assert caught.value.items == 2
        assert caught.value.phase == "streaming"
        assert caught.value.maybe_executed


async def test_a_frozen_worker_is_noticed_by_the_item_timeout_where_that_is_shorter():
    async with worker_process() as (process, address), routing(address) as router:
        stream = await router.generate({"items": 2, "hang": True}, endpoint="count", item_timeout=0.2)
        assert [await anext(stream) for _ in range(2)] == [0, 1]
        process.signal(signal.SIGSTOP)
        with pytest.raises(hr.ItemTimeout) as caught:
            await anext(stream)
        assert (caught.value.phase, caught.value.items) == ("streaming", 2)


async def test_a_frozen_router_is_given_up_and_its_engines_are_cancelled():
    cancelled = asyncio.Event()

    async def hangs(request):
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with (
        hr.serve(hangs, **PING) as worker,
        worker_process("reader.py", worker.address) as (process, line),
    ):
        assert line == "read 1"
        process.signal(signal.SIGSTOP)
        await asyncio.wait_for(cancelled.wait(), GUARD)
        await eventually(lambda: not any(worker.stats()[k] for k in ("links", "running")))


async def test_a_killed_router_cancels_its_engines():
    cancelled = asyncio.Event()

    async def hangs(request):
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with hr.serve(hangs) as worker, worker_process("reader.py", worker.address) as (process, _):
        process.signal(signal.SIGKILL)
        await asyncio.wait_for(cancelled.wait(), GUARD)
        await eventually(lambda: not any(worker.stats()[k] for k in ("links", "running")))


async def test_an_idle_link_lives_on():
    async with (
        worker_process("engines.py", "ping_interval=0.2", "ping_timeout=0.2") as (_, address),
        routing(address, **PING) as router,
    ):
        assert await router.call(1, endpoint="echo") == 1
        instance = router.instances()[0].instance_id
        # Time itself is the subject: several liveness bounds without a request.
        await asyncio.sleep(1.5)
        assert router.stats()["links"] == 1
        assert await router.call(2, endpoint="echo") == 2
        assert router.instances()[0].instance_id == instance


async def test_a_worker_whose_loop_is_blocked_still_answers_ping_reject_and_kill():
    settings = ("concurrency=1", "queue=0", "ping_interval=0.2", "ping_timeout=0.2")
    async with (
        worker_process("engines.py", *settings) as (_, address),
        routing(address, **PING) as router,
        routing(address, **PING) as another,
    ):
        assert await another.call(1, endpoint="echo") == 1
        stream = await router.generate({"seconds": 3}, endpoint="block")
        assert await anext(stream) == "blocking"
        began = time.monotonic()
        refused = 0
        while time.monotonic() - began < 1.5:
            asked = time.monotonic()
            with pytest.raises(hr.Overloaded):
                await another.call(1, endpoint="echo")
            # An answer that waited for Python would take what is left of the three seconds.
            assert time.monotonic() - asked < 1
            refused += 1
        assert refused > 3
        assert router.stats()["links"] == another.stats()["links"] == 1
        assert await anext(stream) == "done"
        assert [item async for item in stream] == []


async def test_a_deadline_is_kept_though_the_workers_loop_is_blocked():
    async with worker_process() as (_, address), routing(address) as router:
        stream = await router.generate({"seconds": 3}, endpoint="block", timeout=0.3)
        assert await anext(stream) == "blocking"
        began = time.monotonic()
        with pytest.raises(hr.DeadlineExceeded):
            await anext(stream)
        assert time.monotonic() - began < 2


async def test_a_blocked_caller_keeps_its_link():
    async def slow(request):
        for number in range(5):
            yield number
            await asyncio.sleep(0.01)

    async with (
        worker_process("engines.py", "ping_interval=0.2", "ping_timeout=0.2") as (_, address),
        routing(address, **PING) as router,
    ):
        stream = await router.generate({"items": 5, "gap": 0.05}, endpoint="count")
        assert await anext(stream) == 0
        time.sleep(1.5)
        assert await stream.collect() == [1, 2, 3, 4]
        assert router.stats()["links"] == 1
