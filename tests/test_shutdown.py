"""Draining lets requests finish, closing ends them at once; either way everybody who waits is told."""

from __future__ import annotations

import asyncio

import headrace as hr
import pytest

from support import eventually, idle, serving

pytestmark = pytest.mark.asyncio


class Gate:
    """An engine that yields once, then waits to be let on."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def generate(self, request):
        yield "before"
        try:
            await self.open.wait()
        except BaseException:
            self.cancelled.set()
            raise
        yield "after"


async def test_a_drain_lets_requests_in_flight_finish_and_refuses_new_ones():
    gate = Gate()
    async with serving(gate, router={"instance_timeout": 0.3}) as (worker, router):
        stream = await router.generate(None)
        assert await anext(stream) == "before"
        drained = asyncio.ensure_future(worker.drain())
        closed = asyncio.ensure_future(worker.wait_closed())
        await eventually(lambda: router.instances()[0].state == "draining")
        with pytest.raises(hr.NoInstances):
            await router.generate(None)
        assert not drained.done()
        gate.open.set()
        assert await stream.collect() == ["after"]
        await drained
        await closed
        assert not gate.cancelled.is_set()
        # A second drain and a close find nothing to do.
        await worker.drain()
        await worker.aclose()


async def test_a_drain_lets_queued_requests_run():
    gate = asyncio.Event()

    async def waits(request):
        await gate.wait()
        return request

    async with serving(waits, concurrency=1) as (worker, router):
        calls = [asyncio.ensure_future(router.call(n)) for n in range(5)]
        await eventually(lambda: worker.stats()["queued"] == 4)
        drained = asyncio.ensure_future(worker.drain())
        await eventually(lambda: router.instances()[0].state == "draining")
        gate.set()
        assert await asyncio.gather(*calls) == list(range(5))
        await drained


async def test_a_drain_that_runs_out_of_time_ends_what_is_left_as_shut_down():
    gate = Gate()
    async with serving(gate) as (worker, router):
        stream = await router.generate(None)
        assert await anext(stream) == "before"
        await worker.drain(timeout=0.1)
        with pytest.raises(hr.Disconnected) as caught:
            await anext(stream)
        assert caught.value.reason == "shutdown"
        assert caught.value.maybe_executed
        await asyncio.wait_for(gate.cancelled.wait(), 20)


async def test_an_idle_worker_drains_at_once():
    async with serving(Gate()) as (worker, router):
        await router.wait_for_instances(1)
        async with asyncio.timeout(10):
            await worker.drain()


async def test_a_drain_can_be_cancelled_and_asked_for_again():
    gate = Gate()
    async with serving(gate) as (worker, router):
        stream = await router.generate(None)
        assert await anext(stream) == "before"
        first = asyncio.ensure_future(worker.drain())
        await eventually(lambda: router.instances()[0].state == "draining")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.ensure_future(worker.drain())
        gate.open.set()
        assert await stream.collect() == ["after"]
        await second


async def test_closing_a_worker_ends_requests_in_flight_as_shut_down():
    gate = Gate()
    async with serving(gate, concurrency=1) as (worker, router):
        stream = await router.generate(None)
        assert await anext(stream) == "before"
        waiting = asyncio.ensure_future(anext(stream))
        queued = asyncio.ensure_future(router.call(None))
        await eventually(lambda: worker.stats()["queued"] == 1)
        closed = asyncio.ensure_future(worker.wait_closed())
        await worker.aclose()
        for each in (waiting, queued):
            with pytest.raises(hr.Disconnected) as caught:
                await each
            assert caught.value.reason == "shutdown"
        await asyncio.wait_for(gate.cancelled.wait(), 20)
        await closed
        await eventually(lambda: idle(worker, router))


async def test_closing_a_router_fails_its_streams_and_cancels_their_engines():
    gate = Gate()
    async with hr.serve(gate) as worker:
        router = hr.Router(worker.address)
        stream = await router.generate(None)
        assert await anext(stream) == "before"
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await router.aclose()
        with pytest.raises(hr.Disconnected):
            await waiting
        await asyncio.wait_for(gate.cancelled.wait(), 20)
        await eventually(lambda: idle(worker) and worker.stats()["links"] == 0)
        with pytest.raises(RuntimeError, match="closed"):
            router.generate(None)
        await router.aclose()


async def test_a_router_without_a_worker_closes_and_its_waiting_calls_fail():
    router = hr.Router("127.0.0.1:1", instance_timeout=60)
    call = asyncio.ensure_future(router.call(None))
    await eventually(lambda: router.stats()["in_flight"] == 1)
    await router.aclose()
    with pytest.raises(hr.HeadraceError, match="closed"):
        await call


async def test_a_worker_that_is_served_again_is_found_again(tmp_path):
    async def echo(request):
        return request

    address = f"unix:{tmp_path}/socket"
    async with hr.Router(address) as router:
        for number in range(3):
            async with hr.serve(echo, address):
                assert await router.call(number, timeout=20) == number
        assert not (tmp_path / "socket").exists()


async def test_serve_can_be_awaited_or_entered():
    async def echo(request):
        return request

    worker = await hr.serve(echo)
    async with worker, hr.Router(worker.address) as router:
        assert await router.call(1) == 1
    await worker.wait_closed()
    assert "echo" in repr(worker)


async def test_unix_addresses_work_and_the_socket_file_goes_with_the_worker(tmp_path):
    async def echo(request):
        return request

    path = tmp_path / "a socket"
    async with serving(echo, f"unix:{path}") as (worker, router):
        assert worker.address == f"unix:{path}"
        assert await router.call(bytes(100_000)) == bytes(100_000)
        with pytest.raises(OSError, match="another worker listens"):
            await hr.serve(echo, f"unix:{path}")
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(OSError, match="no socket"):
        await hr.serve(echo, f"unix:{path}")
    assert path.read_text() == "precious"


async def test_a_worker_that_is_dropped_answers_its_callers():
    gate = Gate()
    worker = await hr.serve(gate)
    async with hr.Router(worker.address) as router:
        stream = await router.generate(None)
        assert await anext(stream) == "before"
        del worker
        with pytest.raises(hr.Disconnected):
            await anext(stream)
