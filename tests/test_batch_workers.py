"""Workers: what runs where, how they start, how they fail to, and who takes the place of one that is lost."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import headrace as hr
import pytest

from batches import Held, batching, double, gathered
from support import GUARD, Log, eventually

pytestmark = pytest.mark.asyncio


class Model:
    """Notes on which thread each of its parts runs."""

    log: Log

    def __init__(self):
        self.note("init")

    def note(self, what):
        thread = threading.current_thread()
        self.log.note((what, thread.name, threading.get_ident()))
        assert thread.daemon or thread is threading.main_thread()

    def on_start(self):
        self.note("on_start")

    def warmup(self):
        self.note("warmup")

    def process(self, batch):
        self.note("process")
        return double(batch)

    def on_stop(self):
        self.note("on_stop")


class AsyncModel(Model):
    async def on_start(self):
        self.note("on_start")

    async def process(self, batch):
        return super().process(batch)


def model(base=Model):
    return type("Noting", (base,), {"log": Log()})


async def test_everything_of_a_synchronous_function_runs_on_one_named_thread_for_each_worker():
    noting = model()
    async with batching(noting, workers=2, max_batch_size=1, name="m") as batcher:
        assert [what for what, *_ in noting.log].count("warmup") == 2
        assert await batcher.map(range(50)) == double(list(range(50)))
    by_thread = {}
    for what, name, ident in noting.log:
        by_thread.setdefault((name, ident), []).append(what)
    assert sorted(name for name, _ in by_thread) == ["headrace-m-0", "headrace-m-1"]
    for parts in by_thread.values():
        assert parts[:3] == ["init", "on_start", "warmup"] and parts[-1] == "on_stop"
        assert set(parts[3:-1]) <= {"process"}


async def test_everything_of_an_asynchronous_function_runs_on_the_loop_once():
    noting = model(AsyncModel)
    async with batching(noting, workers=3, max_batch_size=1) as batcher:
        assert await batcher.map(range(4)) == [0, 2, 4, 6]
    assert [what for what, *_ in noting.log] == ["init", "on_start", "warmup"] + ["process"] * 4 + ["on_stop"]
    assert {ident for *_, ident in noting.log} == {threading.get_ident()}


async def test_hooks_that_are_given_go_before_an_objects_own():
    noting, given = model(), []
    hooks = {name: lambda name=name: given.append(name) for name in ("on_start", "warmup", "on_stop")}
    async with batching(noting, **hooks) as batcher:
        await batcher.submit(1)
    assert given == ["on_start", "warmup", "on_stop"]
    assert [what for what, *_ in noting.log] == ["init", "process"]


@pytest.mark.parametrize("kind", ["task", "thread"])
async def test_items_wait_until_the_workers_have_started(kind):
    held, log = Held(kind), Log()
    held.open()
    gate = threading.Event()

    def on_start():
        assert gate.wait(GUARD)
        log.note("on_start")

    async def on_start_async():
        await eventually(gate.is_set)
        log.note("on_start")

    batcher = hr.Batcher(held.function, on_start=on_start_async if kind == "task" else on_start)
    waits = asyncio.ensure_future(batcher.submit(1))
    batcher.pause()
    batcher.resume()
    expires = asyncio.ensure_future(batcher.submit(2, timeout=0.02))
    with pytest.raises(hr.Expired):
        await expires
    assert held.batches == []
    gate.set()
    assert await waits == 2
    assert log == ["on_start"]
    assert await batcher.drain()


class Broken(Exception):
    pass


def broken():
    raise Broken("no device")


async def broken_async():
    raise Broken("no device")


FAILURES = [("thread", broken), ("task", broken), ("task", broken_async)]


@pytest.mark.parametrize(("kind", "hook"), FAILURES)
@pytest.mark.parametrize("which", ["on_start", "warmup"])
async def test_a_start_that_fails_says_why(kind, hook, which):
    held, log = Held(kind), Log()
    stop = {"on_stop": lambda: log.note("on_stop")}
    batcher = hr.Batcher(held.function, name="m", workers=2, **{which: hook}, **stop)
    with pytest.raises(hr.StartupError, match="'m' did not start: Broken: no device") as failed:
        async with batcher:
            raise AssertionError("entered")
    assert type(failed.value.__cause__) is Broken
    # Each who asks has an instance of their own.
    errors = []
    for use in (batcher.submit, batcher.map):
        with pytest.raises(hr.StartupError) as again:
            use([1])
        errors.append(again.value)
    assert len({id(error) for error in [failed.value, *errors]}) == 3
    await batcher.aclose()
    # What has been set up is torn down.
    expected = {"on_start": 0, "warmup": 2 if kind == "thread" else 1}[which]
    await eventually(lambda: len(log) == expected)
    await eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("headrace-m-")])


@pytest.mark.parametrize(("kind", "hook"), FAILURES)
async def test_who_waits_for_a_start_that_fails_is_told(kind, hook):
    held = Held(kind)
    batcher = hr.Batcher(held.function, on_start=hook, max_batch_size=2)
    waits = [asyncio.ensure_future(batcher.submit(number)) for number in range(5)]
    for error in await gathered(*waits):
        assert type(error) is hr.BatchFailed
        assert type(error.__cause__) is hr.StartupError
        assert type(error.__cause__.__cause__) is Broken
    assert held.batches == []
    with pytest.raises(hr.StartupError):
        batcher.submit(1)
    assert batcher.stats().is_conserved
    await batcher.aclose()


@pytest.mark.parametrize("kind", ["task", "thread"])
async def test_a_start_that_takes_too_long_is_given_up(kind):
    held, gate, log = Held(kind), threading.Event(), Log()

    async def hangs():
        try:
            await asyncio.Event().wait()
        finally:
            log.note("left")

    def hangs_in_thread():
        assert gate.wait(GUARD)
        log.note("left")

    on_start = hangs if kind == "task" else hangs_in_thread
    batcher = hr.Batcher(held.function, on_start=on_start, startup_timeout=0.05)
    waits = asyncio.ensure_future(batcher.submit(1))
    with pytest.raises(hr.StartupTimeout, match=r"0\.05 s \(startup_timeout\)") as failed:
        await batcher.start()
    assert isinstance(failed.value, hr.StartupError) and isinstance(failed.value, TimeoutError)
    (error,) = await gathered(waits)
    assert type(error.__cause__) is hr.StartupTimeout
    assert await batcher.aclose(0.05) is (kind == "task")
    gate.set()
    await eventually(lambda: log == ["left"])


@pytest.mark.parametrize("kind", ["task", "thread"])
async def test_closing_while_it_starts_tells_who_waits(kind):
    held, gate = Held(kind), threading.Event()

    async def hangs():
        await asyncio.Event().wait()

    on_start = hangs if kind == "task" else lambda: gate.wait(GUARD)
    batcher = hr.Batcher(held.function, on_start=on_start)
    starts = asyncio.ensure_future(batcher.start())
    await asyncio.sleep(0)
    waits = asyncio.ensure_future(batcher.submit(1))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(batcher.aclose())
    assert [type(error) for error in await gathered(starts, waits)] == [hr.Closed, hr.Closed]
    gate.set()
    assert await closing
    assert held.batches == []


async def test_the_thread_of_a_hung_function_is_replaced_by_one_that_starts_anew():
    noting, gate = model(), threading.Event()

    def process(self, batch):
        self.note("process")
        if batch[0] == "hang":
            assert gate.wait(GUARD)
            self.note("returned")
        return list(batch)

    noting.process = process
    async with batching(noting, callback_timeout=0.05, name="m") as batcher:
        with pytest.raises(hr.WorkerLost):
            await batcher.submit("hang")
        assert await batcher.submit("next") == "next"
        idents = {ident for _, _, ident in noting.log}
        assert len(idents) == 2
        assert {name for _, name, _ in noting.log} == {"headrace-m-0"}
        assert [what for what, *_ in noting.log].count("warmup") == 2
        assert batcher.stats().workers_lost == 1
    gate.set()
    # The one that was given up ends when its function returns.
    await eventually(lambda: [what for what, *_ in noting.log].count("on_stop") == 2)
    assert batcher.stats().late_results == 1


async def test_when_no_worker_is_left_and_none_can_be_started_everybody_is_told():
    starts, gate = [], threading.Event()

    def on_start():
        starts.append(1)
        if len(starts) > 1:
            raise Broken("no device")

    def hangs(batch):
        assert gate.wait(GUARD)

    batcher = hr.Batcher(hangs, on_start=on_start, callback_timeout=0.05, max_batch_size=1)
    errors = await gathered(batcher.submit(1), batcher.submit(2))
    assert type(errors[0]) is hr.WorkerLost
    assert type(errors[1]) is hr.BatchFailed and type(errors[1].__cause__) is hr.StartupError
    with pytest.raises(hr.StartupError, match="no device"):
        batcher.submit(3)
    gate.set()
    await batcher.aclose()


async def test_as_long_as_a_worker_is_left_the_batcher_goes_on():
    starts, gate, told = [], threading.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    def on_start():
        starts.append(1)
        if len(starts) > 2:
            raise Broken("no device")

    def hangs(batch):
        assert batch[0] != "hang" or gate.wait(GUARD)
        return list(batch)

    async with batching(
        hangs, on_start=on_start, callback_timeout=0.05, max_batch_size=1, workers=2
    ) as batcher:
        with pytest.raises(hr.WorkerLost):
            await batcher.submit("hang")
        await eventually(lambda: [type(error) for error in told] == [hr.StartupError])
        assert await batcher.map(range(10)) == list(range(10))
        gate.set()


@pytest.mark.parametrize("kind", ["task", "thread"])
async def test_an_on_stop_that_raises_or_hangs_does_not_hold_up_the_end(kind):
    told, gate = [], threading.Event()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    held = Held(kind)
    held.open()
    batcher = hr.Batcher(held.function, on_stop=broken)
    assert await batcher.submit(1) == 2
    assert await batcher.aclose()
    await eventually(lambda: [type(error) for error in told] == [Broken])

    async def hangs():
        await asyncio.Event().wait()

    batcher = hr.Batcher(held.function, on_stop=hangs if kind == "task" else lambda: gate.wait(GUARD))
    assert await batcher.submit(1) == 2
    assert await asyncio.wait_for(batcher.aclose(0.05), GUARD) is False
    gate.set()


async def test_context_variables_of_whoever_submits_are_not_the_functions():
    whose = contextvars.ContextVar("whose", default="nobody")
    seen = []

    async def note(batch):
        seen.append(whose.get())
        whose.set("the function")
        return list(batch)

    async with batching(note) as batcher:
        whose.set("a caller")
        await batcher.submit(1)
        await batcher.submit(1)
    assert seen == ["nobody", "nobody"]
