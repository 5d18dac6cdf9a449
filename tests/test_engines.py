"""Every kind of engine, called with what it takes; synchronous ones on threads of their own."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import queue
import threading
import time
from types import SimpleNamespace

import headrace as hr
import pytest
from headrace._engine import _Threads

from support import GUARD, Log, eventually, serving

pytestmark = pytest.mark.asyncio


async def stream_of(request):
    for number in range(request):
        yield number


async def stream_with(request, ctx):
    assert isinstance(ctx, hr.Context)
    for number in range(request):
        yield number


async def coroutine_of_a_stream(request):
    await asyncio.sleep(0)
    return stream_of(request)


def function_of_a_generator(request):
    return (number for number in range(request))


def generator(request):
    yield from range(request)


def generator_with(request, ctx):
    assert ctx.endpoint
    yield from range(request)


class Model:
    async def generate(self, request, ctx):
        for number in range(request):
            yield number


class Callable_:
    async def __call__(self, request):
        for number in range(request):
            yield number


class SyncModel:
    def generate(self, request):
        yield from range(request)


async def three(a, request):
    assert a == "bound"
    for number in range(request):
        yield number


async def optional(request, ctx=None):
    assert ctx is not None
    for number in range(request):
        yield number


async def anything(*arguments):
    request, ctx = arguments
    assert ctx.id
    for number in range(request):
        yield number


STREAMING = {
    "async generator": stream_of,
    "async generator with ctx": stream_with,
    "coroutine that returns an async generator": coroutine_of_a_stream,
    "generator": generator,
    "generator with ctx": generator_with,
    "function that returns a generator": function_of_a_generator,
    "object with generate": Model(),
    "class with generate": Model,
    "bound method": Model().generate,
    "object with a sync generate": SyncModel(),
    "callable object": Callable_(),
    "partial": functools.partial(three, "bound"),
    "partial of a partial": functools.partial(functools.partial(three), "bound"),
    "optional ctx": optional,
    "any arguments": anything,
    "static method": staticmethod(stream_of).__func__,
}


@pytest.mark.parametrize("kind", STREAMING)
async def test_every_kind_of_streaming_engine_streams(kind):
    async with serving({"e": STREAMING[kind]}) as (_, router):
        for items in (0, 1, 3, 300):
            assert await (await router.generate(items)).collect() == list(range(items))


async def double(request):
    return request * 2


async def double_with(request, ctx):
    return request * 2 if ctx.id else None


class Doubler:
    async def generate(self, request):
        return request * 2

    def __call__(self, request):
        raise AssertionError("an object with generate is called through it")


UNARY = {
    "coroutine": double,
    "coroutine with ctx": double_with,
    "function": lambda request: request * 2,
    "function with ctx": lambda request, ctx: request * 2,
    "object with a coroutine generate": Doubler(),
    "class": Doubler,
    "partial of a coroutine": functools.partial(double),
    "builtin": (2).__mul__,
}


@pytest.mark.parametrize("kind", UNARY)
async def test_every_kind_of_unary_engine_answers(kind):
    async with serving({"e": UNARY[kind]}) as (_, router):
        assert await router.call(21) == 42
        assert await (await router.generate(21)).collect() == [42]


async def test_an_engine_that_returns_nothing_answers_none():
    async def nothing(request):
        pass

    async with serving({"a": nothing, "b": lambda request: None}) as (_, router):
        assert await router.call(1, endpoint="a") is None
        assert await router.call(1, endpoint="b") is None


async def test_endpoints_are_named_after_their_engines():
    for engine, name in ((stream_of, "stream_of"), (Model, "Model"), (Model(), "Model")):
        async with serving(engine) as (worker, router):
            assert worker.endpoints == [name]
            assert await (await router.generate(1, endpoint=name)).collect() == [0]
    with pytest.raises(ValueError, match="lambda"):
        hr.serve(lambda request: request)


@pytest.mark.parametrize("engine", [1, object(), lambda: None, lambda a, b, c: None])
async def test_what_is_no_engine_is_refused(engine):
    with pytest.raises(TypeError):
        hr.serve({"e": engine})


async def test_what_a_sync_engine_raises_is_an_engine_error():
    def broken(request):
        raise ValueError("sync")

    def broken_later(request):
        yield 1
        raise ValueError("later")

    async with serving({"a": broken, "b": broken_later}) as (_, router):
        with pytest.raises(hr.EngineError, match="ValueError: sync"):
            await router.call(None, endpoint="a")
        stream = await router.generate(None, endpoint="b")
        assert await anext(stream) == 1
        with pytest.raises(hr.EngineError, match="ValueError: later"):
            await anext(stream)


async def test_sync_engines_run_on_threads_with_names_and_do_not_block_the_loop():
    def blocks(request):
        time.sleep(0.1)
        return threading.current_thread().name

    async with serving(blocks) as (_, router):
        answer = asyncio.ensure_future(router.call(None))
        turns = 0
        while not answer.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > 10
        assert "headrace-blocks" in await answer


async def test_sync_engines_run_beside_each_other_up_to_the_concurrency():
    meet = threading.Barrier(3)

    def meets(request):
        return meet.wait(timeout=20)

    async with serving(meets, concurrency=3) as (_, router):
        assert sorted(await asyncio.gather(*(router.call(None) for _ in range(3)))) == [0, 1, 2]


@pytest.mark.any_loop
async def test_a_thread_that_is_about_to_run_a_request_is_given_no_second_one():
    is_taken, may_run, meet = threading.Event(), threading.Event(), threading.Barrier(3)

    class Slow(queue.SimpleQueue):
        """Whoever has taken something is held up before it can say so."""

        def get(self):
            job = super().get()
            is_taken.set()
            assert may_run.wait(GUARD)
            return job

    threads = _Threads(lambda _request, _sink: meet.wait(GUARD), "test", 2)
    threads._queue = Slow()
    try:
        for request in range(2):
            threads.submit(contextvars.copy_context(), request, SimpleNamespace(is_killed=False))
            await eventually(is_taken.is_set)
        may_run.set()
        await asyncio.to_thread(meet.wait, GUARD)
    finally:
        threads.close()


async def test_a_sync_functions_result_is_discarded_but_its_place_held_until_it_returns():
    entered, release, log = threading.Event(), threading.Event(), Log()

    def slow(request):
        entered.set()
        release.wait(timeout=20)
        log.note("returned")
        return "too late"

    async with serving(slow, concurrency=1, queue=0) as (worker, router):
        call = asyncio.ensure_future(router.call(None))
        await eventually(entered.is_set)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await eventually(lambda: worker.stats()["streams"] == 0)
        assert worker.stats()["running"] == 1
        with pytest.raises(hr.Overloaded):
            await router.call(None)
        release.set()
        await eventually(lambda: worker.stats()["running"] == 0)
        assert log == ["returned"]


async def test_a_sync_generator_is_closed_at_its_next_yield():
    log, go_on = Log(), threading.Event()

    def endless(request):
        try:
            yield 1
            go_on.wait(timeout=20)
            log.note("next")
            yield 2
            log.note("went on")
        finally:
            log.note("closed")

    async with serving(endless) as (worker, router):
        stream = await router.generate(None)
        assert await anext(stream) == 1
        stream.kill()
        await eventually(lambda: worker.stats()["streams"] == 0)
        assert log == []
        go_on.set()
        await eventually(lambda: worker.stats()["running"] == 0)
        assert log == ["next", "closed"]


async def test_a_sync_generator_waits_for_its_reader():
    produced = Log()

    def fast(request):
        for number in range(200):
            produced.note(number)
            yield bytes(16 * 1024)

    async with serving(fast, router={"stream_window": 64 * 1024}) as (_, router):
        stream = await router.generate(None)
        await eventually(lambda: len(produced) >= 4)
        first = [await anext(stream) for _ in range(3)]
        assert len(first) == 3
        assert len(produced) < 200
        assert len(await stream.collect()) == 197


async def test_a_blocked_sync_generator_is_freed_by_kill():
    log = Log()

    def endless(request):
        try:
            while True:
                yield bytes(16 * 1024)
        finally:
            log.note("closed")

    async with serving(endless, router={"stream_window": 64 * 1024}) as (worker, router):
        stream = await router.generate(None)
        await anext(stream)
        stream.kill()
        await eventually(lambda: worker.stats()["running"] == 0)
        assert log == ["closed"]


async def test_sync_engines_may_ask_their_context():
    def asks(request, ctx):
        while not ctx.is_stopped:
            time.sleep(0.001)
            yield ctx.remaining() is not None
        yield "bye"

    def stops(request, ctx):
        yield 1
        ctx.stop_generating()
        yield 2

    async with serving({"asks": asks, "stops": stops}) as (_, router):
        stream = await router.generate(None, endpoint="asks")
        assert await anext(stream) is True
        stream.stop()
        assert (await stream.collect())[-1] == "bye"
        stream = await router.generate(None, endpoint="stops")
        assert await stream.collect() == [1, 2]
        assert stream.stopped


async def test_a_sync_engines_system_exit_ends_its_request_only(capfd):
    def leaves(request):
        raise SystemExit(3)

    async with serving(leaves, concurrency=1) as (_, router):
        for _ in range(2):
            with pytest.raises(hr.EngineError, match="SystemExit"):
                await router.call(None)


async def test_each_request_has_a_context_of_its_own():
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def sets(request):
        assert variable.get() == 0
        for _ in range(3):
            variable.set(request)
            await asyncio.sleep(0)
            assert variable.get() == request
            yield variable.get()

    async with serving(sets) as (_, router):

        async def ask(number: int) -> list[int]:
            variable.set(-number)
            items = []
            async for item in await router.generate(number):
                # What the engine sets is the engine's; what the caller set is still there after a wait.
                assert variable.get() == -number
                items.append(item)
            return items

        answers = await asyncio.gather(*(ask(number) for number in range(1, 20)))
        assert answers == [[number] * 3 for number in range(1, 20)]
        assert variable.get() == 0


async def test_engines_begin_with_the_context_of_serve_and_never_with_a_callers():
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    async def asks(request):
        before = variable.get()
        variable.set("an engine")
        return before

    def asks_on_a_thread(request):
        before = variable.get()
        variable.set("an engine")
        return before

    async def somebody_else() -> None:
        variable.set("somebody else")
        async with hr.Router("127.0.0.1:1"):
            pass

    # The first user of this loop leaves nothing of its own behind.
    await asyncio.create_task(somebody_else())
    variable.set("serve")
    async with serving({"loop": asks, "thread": asks_on_a_thread}, concurrency=1) as (_, router):
        variable.set("a caller")
        for endpoint in ("loop", "thread"):
            assert [await router.call(None, endpoint=endpoint) for _ in range(3)] == ["serve"] * 3


async def test_timeouts_and_task_groups_work_inside_engines():
    async def engine(request):
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            yield "timed out"
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(0, number)) for number in range(3)]
        yield [task.result() for task in tasks]

    async with serving(engine) as (_, router):
        assert await (await router.generate(None)).collect() == ["timed out", [0, 1, 2]]


async def test_an_engine_may_call_another_engine_of_the_same_worker():
    async def inner(request):
        yield request
        yield request + 1

    async def outer(request):
        async with hr.Router(worker.address) as router:
            async for item in await router.generate(request, endpoint="inner"):
                yield item * 10

    async with serving({"inner": inner, "outer": outer}) as (worker, router):
        assert await (await router.generate(1, endpoint="outer")).collect() == [10, 20]
