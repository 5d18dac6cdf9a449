"""Loops, threads, forks and the end of the interpreter, with items queued: no hang and no noise."""

from __future__ import annotations

import asyncio
import gc
import threading

import headrace as hr
import pytest
import uvloop

from batches import KINDS, Held, batching, double, double_async
from support import GUARD, eventually, run_script

FACTORIES = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}
every_loop = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
each_kind = pytest.mark.parametrize("kind", KINDS)


@every_loop
@pytest.mark.parametrize("function", [double, double_async])
def test_a_batcher_may_be_made_before_its_loop(factory, function):
    batcher = hr.Batcher(function)

    async def uses() -> list[int]:
        async with batcher:
            return await batcher.map(range(3))

    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(uses()) == [0, 2, 4]


def test_without_a_loop_a_submit_says_so():
    with pytest.raises(RuntimeError, match="no running event loop"):
        hr.Batcher(double).submit(1)


@every_loop
@pytest.mark.parametrize("function", [double, double_async])
def test_a_second_loop_is_refused(factory, function):
    batcher = hr.Batcher(function)

    async def uses() -> int:
        return await batcher.submit(1)

    with asyncio.Runner(loop_factory=factory) as first:
        assert first.run(uses()) == 2
        with asyncio.Runner(loop_factory=factory) as second, pytest.raises(RuntimeError, match="loop"):
            second.run(uses())
        assert first.run(uses()) == 2
    with asyncio.Runner(loop_factory=factory) as third, pytest.raises((RuntimeError, hr.Closed)):
        third.run(uses())


@every_loop
def test_another_threads_loop_is_refused(factory):
    batcher = hr.Batcher(double)

    async def uses() -> int:
        return await batcher.submit(1)

    async def main() -> None:
        assert await uses() == 2
        with pytest.raises(RuntimeError, match="another thread"):
            await asyncio.to_thread(asyncio.run, uses())
        await batcher.aclose()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@every_loop
@each_kind
def test_a_loop_that_ends_with_items_queued_closes_the_batcher(factory, kind, capfd):
    kept = []

    async def leaves() -> None:
        held = Held(kind)
        batcher = hr.Batcher(held.function, max_batch_size=1)
        kept.extend([held, batcher])
        kept.extend(batcher.submit(number) for number in range(3))
        await held.entered()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(leaves())
    held, batcher, *waits = kept
    if kind == "thread":
        held.open()
    with pytest.raises((RuntimeError, hr.Closed)):
        batcher.submit_nowait(1)
    del kept[:], waits, batcher
    gc.collect()
    until = threading.Event()
    for _ in range(1000):
        if not [t for t in threading.enumerate() if t.name.startswith("headrace-_in_thread")]:
            break
        until.wait(0.01)
    else:
        raise AssertionError(f"threads are left: {threading.enumerate()}")
    assert capfd.readouterr().err == ""


@pytest.mark.asyncio
async def test_a_thread_that_waits_is_told_when_the_batcher_closes():
    held = Held("thread")
    batcher = hr.Batcher(held.function, max_batch_size=1)
    await batcher.start()
    first = asyncio.ensure_future(asyncio.to_thread(batcher.submit_sync, 1))
    await held.entered()
    second = asyncio.ensure_future(asyncio.to_thread(batcher.submit_sync, 2))
    await eventually(lambda: batcher.stats().queued == 1)
    batcher.close()
    with pytest.raises(hr.Closed):
        await second
    held.open()
    assert await first == 2
    assert await batcher.aclose()


@pytest.mark.asyncio
async def test_close_may_be_called_from_any_thread():
    async with batching(double) as batcher:
        assert await batcher.submit(1) == 2
        await asyncio.to_thread(batcher.close)
        with pytest.raises(hr.Closed):
            batcher.submit(1)


EXIT = """
import asyncio, sys, threading
import headrace as hr
kind, ending = sys.argv[1:]
gate = threading.Event()
entered = threading.Event()

def blocks(batch):
    entered.set()
    gate.wait()
    return batch

async def waits(batch):
    entered.set()
    await asyncio.Event().wait()

def streams(batch):
    entered.set()
    while True:
        yield [1] * len(batch)

class Steps:
    def __init__(self): self.tickets = []
    def add(self, requests): self.tickets += [ticket for ticket, _ in requests]
    def remove(self, tickets): pass
    def capacity(self): return 1
    def step(self):
        entered.set()
        return [(ticket, 1, False) for ticket in self.tickets]

stopped = []
function = {"thread": blocks, "task": waits, "streams": streams, "steps": Steps}[kind]
batcher = hr.Batcher(function, max_batch_size=1, on_stop=lambda: stopped.append(1))

async def main():
    submit = batcher.stream if kind in ("streams", "steps") else batcher.submit
    if ending != "idle":
        kept.extend(submit(number) for number in range(5))
        while not entered.is_set():
            await asyncio.sleep(0)
        if kind != "task":
            threading.Thread(target=sync, daemon=True).start()
    else:
        await batcher.start()
    print("ready", flush=True)
    if ending == "exit":
        sys.exit(3)

def sync():
    try:
        batcher.submit_sync(1)
    except BaseException:
        pass

kept = []
if ending == "loop":
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["thread", "task", "streams", "steps"])
@pytest.mark.parametrize("ending", ["return", "exit", "loop", "idle"])
def test_the_interpreter_exits_with_items_queued(kind, ending):
    code, out, err = run_script(EXIT, kind, ending)
    # A task that is left on a loop that nobody closes is asyncio's to speak of, when there is one.
    if ending == "loop" and kind == "task":
        err = ""
    assert (code, out, err) == (3 if ending == "exit" else 0, "ready\n", "")


FORK = """
import asyncio, os, sys, warnings
import headrace as hr
warnings.simplefilter("ignore", DeprecationWarning)
kind, ending = sys.argv[1:]

def double(batch):
    return [number * 2 for number in batch]

async def double_async(batch):
    return double(batch)

batcher = hr.Batcher(double if kind == "thread" else double_async, max_batch_size=1)

def in_the_child():
    told = []
    for use in (batcher.submit, batcher.map, lambda _: batcher.stats(), lambda _: batcher.close()):
        try:
            use([1])
        except hr.ForkError:
            told.append("ForkError")
    print(*told, flush=True)
    if ending == "_exit":
        os._exit(0)
    sys.exit(0)

async def main():
    assert await batcher.submit(1) == 2
    batcher.pause()
    waits = [batcher.submit(number) for number in range(3)]
    await asyncio.sleep(0)
    child = os.fork()
    if not child:
        in_the_child()
    _, status = os.waitpid(child, 0)
    print("parent", os.waitstatus_to_exitcode(status), flush=True)
    if ending == "exit":
        # The child has closed the loop, whose descriptors it shares with this process: asyncio's loops are
        # not to be used any more.
        os._exit(0)
    batcher.resume()
    assert await asyncio.gather(*waits) == [0, 2, 4]
    assert await batcher.drain()

asyncio.run(main())
"""


@each_kind
@pytest.mark.parametrize("ending", ["_exit", "exit"])
def test_a_fork_with_items_queued_leaves_them_to_the_parent(kind, ending):
    told = " ".join(["ForkError"] * 4)
    assert run_script(FORK, kind, ending) == (0, f"{told}\nparent 0\n", "")


MANY = """
import asyncio, threading
import headrace as hr

def double(batch):
    return [number * 2 for number in batch]

async def main():
    for _ in range(50):
        batcher = hr.Batcher(double, workers=2)
        assert await batcher.map(range(10)) == [number * 2 for number in range(10)]
        await batcher.aclose()
    # A thread has told that it stops, and is gone a moment later.
    for _ in range(2000):
        left = [t.name for t in threading.enumerate() if t.name.startswith("headrace-double")]
        if not left:
            break
        await asyncio.sleep(0.01)
    print(left, flush=True)

asyncio.run(main())
"""


def test_threads_of_batchers_that_were_closed_are_gone():
    assert run_script(MANY, guard=GUARD) == (0, "[]\n", "")
