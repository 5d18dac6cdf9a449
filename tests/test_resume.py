"""Calls that are run again: idempotent ones, and streams that their caller knows how to continue."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import headrace as hr
import pytest

from support import GUARD, Process, eventually, routing, worker_process

pytestmark = pytest.mark.asyncio

ITEMS = 400


def rest(request: dict[str, Any], items: list[int]) -> dict[str, Any]:
    """The request for what is missing."""
    assert items == list(range(len(items)))
    return {**request, "start": len(items)}


class Workers:
    """Worker processes, by instance id."""

    def __init__(self, router: hr.Router, by_address: dict[str, Process]) -> None:
        self.router = router
        self._by_address = by_address

    def of(self, stream: Any) -> Process:
        [address] = [
            each.address for each in self.router.instances() if each.instance_id == stream.instance_id
        ]
        return self._by_address[address]


@contextlib.asynccontextmanager
async def several(count: int, **settings: Any) -> AsyncIterator[Workers]:
    async with contextlib.AsyncExitStack() as stack:
        by_address: dict[str, Process] = {}
        for _ in range(count):
            process, address = await stack.enter_async_context(worker_process())
            by_address[address] = process
        router = await stack.enter_async_context(routing(list(by_address), **settings))  # type: ignore[arg-type]
        await router.wait_for_instances(count, timeout=GUARD)
        yield Workers(router, by_address)


@pytest.mark.parametrize("read_before", [0, 1, 100])
async def test_a_stream_goes_on_where_its_killed_worker_stopped(read_before):
    async with several(2) as workers:
        request = {"items": ITEMS, "gap": 0.001}
        stream = await workers.router.generate(request, endpoint="count", resume=rest)
        items = [await anext(stream) for _ in range(read_before)]
        first = stream.instance_id
        workers.of(stream).signal(signal.SIGKILL)
        items += await stream.collect()
        assert items == list(range(ITEMS))
        assert stream.resumed == 1
        assert stream.instance_id != first
        assert workers.router.stats()["retries_total"] == 1


async def test_a_stream_outlives_several_workers():
    async with several(4) as workers:
        request = {"items": ITEMS, "gap": 0.001}
        items = []
        async with await workers.router.generate(request, endpoint="count", resume=rest) as stream:
            async for item in stream:
                items.append(item)
                if item in (50, 150, 250):
                    workers.of(stream).signal(signal.SIGKILL)
        assert items == list(range(ITEMS))
        assert stream.resumed == 3


async def test_chunks_and_items_that_had_arrived_are_neither_lost_nor_doubled():
    async with several(2) as workers:
        request = {"items": 100, "hang": True}
        stream = await workers.router.generate(
            request, endpoint="count", resume=lambda request, items: {"items": 200, "start": len(items)}
        )
        await eventually(lambda: workers.router.stats()["streams"] == 1)
        workers.of(stream).signal(signal.SIGKILL)
        items: list[int] = []
        async for chunk in stream.chunks():
            items += chunk
        assert items == list(range(200))


async def test_without_another_worker_the_error_says_how_much_had_come():
    async with several(1, instance_timeout=0.2) as workers:
        request = {"items": 10, "hang": True}
        stream = await workers.router.generate(request, endpoint="count", resume=rest)
        for _ in range(10):
            await anext(stream)
        workers.of(stream).signal(signal.SIGKILL)
        with pytest.raises((hr.CannotConnect, hr.NoInstances)) as caught:
            await anext(stream)
        assert caught.value.items == 10
        assert caught.value.phase == "streaming"


async def test_a_stream_that_brought_too_much_is_not_resumed_and_says_why():
    async with several(2, max_resume_bytes=5) as workers:
        stream = await workers.router.generate({"items": 10, "hang": True}, endpoint="count", resume=rest)
        for _ in range(10):
            await anext(stream)
        workers.of(stream).signal(signal.SIGKILL)
        with pytest.raises(hr.Disconnected, match="max_resume_bytes=5") as caught:
            await anext(stream)
        assert caught.value.items == 10
        assert stream.resumed == 0


async def test_what_the_function_raises_ends_the_stream():
    def give_up(request: Any, items: list[Any]) -> Any:
        raise LookupError(f"nothing to say after {len(items)} items")

    async with several(2) as workers:
        stream = await workers.router.generate({"items": 3, "hang": True}, endpoint="count", resume=give_up)
        for _ in range(3):
            await anext(stream)
        workers.of(stream).signal(signal.SIGKILL)
        with pytest.raises(LookupError, match="after 3 items") as caught:
            await anext(stream)
        assert isinstance(caught.value.__context__, hr.Disconnected)


@pytest.mark.parametrize("number", [0, 3])
async def test_a_request_that_kills_its_workers_does_not_kill_them_all(number):
    async with several(5) as workers:
        items: list[int] = []
        with pytest.raises(hr.Disconnected) as caught:
            stream = await workers.router.generate(
                {"items": 9, "die": number, "gap": 0.01}, endpoint="count", resume=rest
            )
            async for item in stream:
                items.append(item)
        assert items == list(range(number))
        assert caught.value.items == number
        await eventually(lambda: workers.router.stats()["in_flight"] == 0)
        assert any(each.state == "up" for each in workers.router.instances())


async def test_a_stream_that_is_closed_while_it_waits_for_a_worker():
    async with several(1, instance_timeout=GUARD) as workers:
        stream = await workers.router.generate({"items": 3, "hang": True}, endpoint="count", resume=rest)
        for _ in range(3):
            await anext(stream)
        workers.of(stream).signal(signal.SIGKILL)
        waiting = asyncio.ensure_future(anext(stream))
        await eventually(lambda: stream.resumed == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert workers.router.stats()["in_flight"] == 0
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_the_deadline_covers_every_run():
    async with several(1, instance_timeout=GUARD) as workers:
        request = {"items": 3, "hang": True}
        stream = await workers.router.generate(request, endpoint="count", resume=rest, timeout=1.0)
        for _ in range(3):
            await anext(stream)
        workers.of(stream).signal(signal.SIGKILL)
        with pytest.raises(hr.DeadlineExceeded) as caught:
            await anext(stream)
        assert caught.value.items == 3
        assert 0.9 < caught.value.elapsed < GUARD


async def test_an_idempotent_call_is_run_again_and_another_is_not():
    async with several(2) as workers:
        router = workers.router

        async def killed(**options: Any) -> Any:
            call = asyncio.ensure_future(router.call({"seconds": 0.5}, endpoint="late", **options))
            await eventually(lambda: any(each.in_flight for each in router.instances()))
            [busy] = [each for each in router.instances() if each.in_flight]
            # The answer to a later request shows that the first has begun.
            await router.call("x", endpoint="echo", instance=busy.instance_id)
            workers._by_address[busy.address].signal(signal.SIGKILL)
            return await call

        assert await killed(idempotent=True) == "late"
        with pytest.raises(hr.Disconnected) as caught:
            await killed()
        assert caught.value.maybe_executed


async def test_an_idempotent_stream_that_is_open_is_run_again_before_its_first_item():
    async with several(2) as workers:
        request = {"items": 20, "delay": 0.5}
        stream = await workers.router.generate(request, endpoint="count", idempotent=True)
        workers.of(stream).signal(signal.SIGKILL)
        assert await stream.collect() == list(range(20))
        assert workers.router.stats()["retries_total"] == 1
        assert stream.resumed == 0


async def test_an_idempotent_stream_of_which_an_item_was_read_is_lost():
    async with several(2) as workers:
        request = {"items": 20, "gap": 0.05}
        stream = await workers.router.generate(request, endpoint="count", idempotent=True)
        assert await anext(stream) == 0
        workers.of(stream).signal(signal.SIGKILL)
        with pytest.raises(hr.Disconnected):
            await stream.collect()
        assert workers.router.stats()["retries_total"] == 0


async def test_an_idempotent_call_of_an_engine_that_streams_is_not_unary():
    async with several(1) as workers:
        for _ in range(3):
            with pytest.raises(hr.NotUnary):
                await workers.router.call({"items": 2}, endpoint="count", idempotent=True)


async def test_a_call_whose_worker_shuts_down_is_run_again_if_it_is_idempotent():
    async def slow(request):
        await asyncio.sleep(0.3)
        return "done"

    async with hr.serve(slow) as one, hr.serve(slow) as two:
        async with hr.Router([one.address, two.address]) as router:
            await router.wait_for_instances(2)
            call = asyncio.ensure_future(router.call(None, idempotent=True))
            await eventually(lambda: one.stats()["running"] + two.stats()["running"])
            await (one if one.stats()["running"] else two).aclose()
            assert await call == "done"
            assert router.stats()["retries_total"] == 1


async def test_a_stopped_stream_that_is_lost_is_resumed_as_a_stopped_one():
    stopped: list[str] = []

    async def engine(request, ctx):
        yield request
        await ctx.stopped()
        stopped.append(request)
        if request == "begin":
            await asyncio.Event().wait()
        yield "bye"

    async with hr.serve(engine) as one, hr.serve(engine) as two:
        async with hr.Router([one.address, two.address]) as router:
            await router.wait_for_instances(2)
            stream = await router.generate("begin", resume=lambda request, items: "again")
            assert await anext(stream) == "begin"
            stream.stop()
            await eventually(lambda: stopped == ["begin"])
            await (one if stream.instance_id == one.instance_id else two).aclose()
            # The engine that goes on is told at once that it is to finish.
            assert await stream.collect() == ["again", "bye"]
            assert stopped == ["begin", "again"]
            assert (stream.resumed, stream.stopped) == (1, True)


async def test_a_call_with_resume_that_is_lost_before_its_answer_is_run_again_as_it_is():
    asked: list[Any] = []

    async with several(2) as workers:
        router = workers.router
        opening = asyncio.ensure_future(
            router.generate({"seconds": 0.5}, endpoint="late", resume=lambda *parts: asked.append(parts))
        )
        await eventually(lambda: any(each.in_flight for each in router.instances()))
        [busy] = [each for each in router.instances() if each.in_flight]
        await router.call("x", endpoint="echo", instance=busy.instance_id)
        workers._by_address[busy.address].signal(signal.SIGKILL)
        stream = await opening
        assert await stream.collect() == ["late"]
        assert stream.instance_id != busy.instance_id
        assert (stream.resumed, asked) == (0, [])
        assert router.stats()["retries_total"] == 1


@pytest.mark.parametrize("how", ["resume", "idempotent"])
async def test_a_call_goes_on_elsewhere_when_its_worker_freezes(how):
    async with several(2, ping_interval=0.2, ping_timeout=0.2) as workers:
        request = {"items": ITEMS, "gap": 0.001, "delay": 0.2 if how == "idempotent" else 0}
        options: dict[str, Any] = {"resume": rest} if how == "resume" else {"idempotent": True}
        stream = await workers.router.generate(request, endpoint="count", **options)
        items = [await anext(stream) for _ in range(10)] if how == "resume" else []
        workers.of(stream).signal(signal.SIGSTOP)
        items += await stream.collect()
        assert items == list(range(ITEMS))
        assert workers.router.stats()["retries_total"] == 1


@pytest.mark.parametrize("options", [{"idempotent": True}, {"resume": rest}])
async def test_what_an_engine_or_a_time_out_ends_is_not_run_again(options):
    ran: list[str] = []

    async def fails(request):
        ran.append(request)
        if request == "later":
            yield 0
        raise ValueError("as asked")

    async def hangs(request):
        ran.append(request)
        if request == "later":
            yield 0
        await asyncio.Event().wait()
        yield 1

    engines = {"fails": fails, "hangs": hangs}
    async with hr.serve(engines) as one, hr.serve(engines) as two:
        async with hr.Router([one.address, two.address]) as router:
            await router.wait_for_instances(2)
            for endpoint, limit, error in (
                ("fails", {}, hr.EngineError),
                ("hangs", {"timeout": 0.1}, hr.DeadlineExceeded),
                ("hangs", {"item_timeout": 0.1}, hr.ItemTimeout),
            ):
                for request in ("at once", "later"):
                    ran.clear()
                    with pytest.raises(error) as caught:
                        stream = await router.generate(request, endpoint=endpoint, **limit, **options)
                        await stream.collect()
                    assert ran == [request]
                    assert caught.value.phase == ("streaming" if request == "later" else "accepted")
                    assert caught.value.items == (request == "later")
                    assert caught.value.instance_id in (one.instance_id, two.instance_id)
            assert router.stats()["retries_total"] == 0
        await eventually(lambda: not one.stats()["running"] + two.stats()["running"])


@pytest.mark.parametrize("options", [{"idempotent": True}, {"resume": rest}])
async def test_a_request_stream_is_not_kept_and_so_takes_neither(options):
    async def numbers():
        yield 1

    async with hr.Router("127.0.0.1:1") as router:
        with pytest.raises(ValueError, match="idempotent= and resume= do not go with it"):
            router.generate(numbers(), **options)
