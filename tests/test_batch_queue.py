"""The native queue of a batcher, where threads, forks and unkind objects meet it."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from headrace._headrace import BatchQueue, BatchSettings
from headrace._loop import current_hub

from support import GUARD, eventually

DEFAULTS: dict[str, Any] = {
    "max_batch_size": 32,
    "max_latency": 0.0,
    "linger": 0.0,
    "max_cost": None,
    "padded_cost": False,
    "allowed_sizes": [],
    "workers": 1,
    "queue_capacity": None,
    "queue_cost": None,
    "max_in_flight_per_client": None,
    "timeout": 60.0,
    "response_timeout": None,
    "predictive_expiry": True,
    "priorities": 1,
    "aging": None,
    "isolate_failures": False,
    "startup_timeout": 30.0,
    "callback_timeout": None,
    "name": "batcher",
}


def queue(
    on_batch: Callable[[Any], object] | None = None,
    *,
    key: Callable[[Any], object] | None = None,
    **settings: Any,
) -> Any:
    chosen = BatchSettings(**(DEFAULTS | settings))
    return BatchQueue.start(current_hub(), chosen, key, None, on_batch, None)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Held:
    """Keeps the batches that it is given."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def __call__(self, taken: Any) -> None:
        self.batches.append(taken)


async def guarded(awaitable: Any) -> Any:
    async with asyncio.timeout(GUARD):
        return await awaitable


@pytest.mark.asyncio
async def test_what_taking_on_the_loop_causes_is_told_without_another_call() -> None:
    batcher = queue(queue_capacity=64)
    fed: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            fed.append(number)
            yield number

    mapped = batcher.map(items())
    assert len(fed) == 65, "one is held that there was no room for"
    await turns()
    taken = batcher.try_take(0, 32)
    await turns()
    assert len(fed) == 97
    taken.complete([None] * 32)
    while (taken := batcher.try_take(0, 32)) is not None:
        taken.complete([None] * len(taken))
        await turns()
    assert await guarded(mapped) == [None] * 100


@pytest.mark.asyncio
async def test_what_is_put_off_to_the_next_turn_is_put_off_once() -> None:
    """Each batch uses up a turn's time and asks for the next by a change of settings. Were that put off
    beside one that is asked for already, there would be one more for each batch, which others stand behind.
    """
    batches, ran, nearly_all = 6000, 0, asyncio.Event()
    settings: dict[str, Any] = {"max_batch_size": 1, "queue_capacity": batches}
    same = BatchSettings(**(DEFAULTS | settings))

    def spend_a_turn(taken: Any) -> None:
        nonlocal ran
        ran += 1
        if ran == batches - 500:
            nearly_all.set()
        until = time.perf_counter() + 0.000_12
        while time.perf_counter() < until:
            pass
        busy.configure(same)
        taken.complete([None])

    busy = queue(spend_a_turn, **settings)
    other = queue(lambda taken: taken.complete([None]))
    mapped = busy.map(range(batches))
    await guarded(nearly_all.wait())
    before = ran
    await guarded(other.submit(None))
    assert ran - before <= 4
    await guarded(mapped)


@pytest.mark.asyncio
async def test_a_second_awaiter_costs_the_first_nothing() -> None:
    held = Held()
    batcher = queue(held)
    submission = batcher.submit(1)

    async def wait() -> Any:
        return await submission

    first = asyncio.create_task(wait())
    await turns()
    (taken,) = held.batches
    taken.complete(["answer"])
    # Before the loop has told the first: within this turn.
    step = submission.__await__()
    with pytest.raises(StopIteration):
        next(step)
    assert await guarded(first) == "answer"


@pytest.mark.asyncio
async def test_a_second_awaiter_of_a_map_costs_the_first_nothing() -> None:
    held = Held()
    batcher = queue(held)
    mapped = batcher.map([1])

    async def wait() -> Any:
        return await mapped

    first = asyncio.create_task(wait())
    await turns()
    held.batches[0].complete(["answer"])
    with pytest.raises(StopIteration) as stopped:
        next(mapped.__await__())
    assert stopped.value.value == ["answer"]
    assert await guarded(first) == ["answer"]


@pytest.mark.asyncio
async def test_the_end_of_a_stream_is_told_to_everybody_who_waits() -> None:
    held = Held()
    batcher = queue(held)
    stream = batcher.stream(1)

    async def wait() -> list[Any]:
        return [item async for item in stream]

    first = asyncio.create_task(wait())
    await turns()
    held.batches[0].finish()
    with pytest.raises(StopAsyncIteration):
        next(stream.__anext__().__await__())
    assert await guarded(first) == []


@pytest.mark.asyncio
async def test_a_worker_is_not_forgotten_when_on_batch_raises_after_keeping_its_batch() -> None:
    kept: list[Any] = []

    def on_batch(taken: Any) -> None:
        kept.append(taken)
        raise LookupError("once")

    unraisable: list[Any] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda what: unraisable.append(str(what.exc_value))
    try:
        batcher = queue(on_batch, workers=3, max_batch_size=2)
        submissions = [batcher.submit(number) for number in range(6)]
        await turns()
    finally:
        sys.unraisablehook = before
    assert [taken.items for taken in kept] == [[0, 1], [2, 3], [4, 5]]
    assert unraisable == ["once"] * 3
    assert not any(submission.done() for submission in submissions)


@pytest.mark.asyncio
async def test_maps_take_turns_when_there_is_room() -> None:
    held = Held()
    batcher = queue(held, queue_capacity=64)
    long = batcher.map(range(10_000))
    short = asyncio.ensure_future(batcher.map([-1]))
    ran = 0
    while not short.done():
        await turns()
        taken = held.batches.pop()
        ran += len(taken)
        taken.complete(taken.items)
    assert short.result() == [-1]
    assert ran < 500, "it did not wait for all of the other"
    long.cancel()


@pytest.mark.asyncio
async def test_what_came_between_the_last_look_and_the_wait_is_told() -> None:
    batcher = queue()
    assert batcher.try_take(0, 1) is None
    submission = batcher.submit(1)
    # Told now, when nobody listens.
    await turns()
    assert await guarded(batcher.takable()) is True
    batcher.try_take(0, 1).complete([None])
    assert submission.done()


# --- keys and clients ---


class Key:
    """A key whose hash and comparison can be made to fail."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.broken = False

    def __hash__(self) -> int:
        if self.broken:
            raise LookupError("hash")
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        if self.broken:
            raise LookupError("comparison")
        return isinstance(other, Key) and self.value == other.value


def isolated(script: str, before: str = "") -> None:
    """Runs a test in a process of its own, which can hang without hanging this one."""
    parts = [textwrap.dedent(before), "from test_batch_queue import *", textwrap.dedent(script)]
    command = [sys.executable, "-c", "\n".join(parts)]
    subprocess.run(command, check=True, timeout=GUARD, cwd=Path(__file__).parent)


async def answered(batcher: Any, held: Held, keys: list[Any]) -> None:
    for key in keys:
        submission = batcher.submit(None, key=key)
        await turns(3)
        for taken in held.batches:
            taken.complete([None] * len(taken))
        held.batches.clear()
        await submission


def test_a_key_that_can_no_longer_be_hashed_harms_no_other() -> None:
    isolated("""
        async def main():
            held = Held()
            batcher = queue(held)
            keys = [Key(number) for number in range(400)]
            await answered(batcher, held, keys[:200])
            keys[0].broken = True
            await answered(batcher, held, keys[200:])
            # What was forgotten meanwhile is numbered anew.
            await answered(batcher, held, keys[1:200])
        asyncio.run(main())
    """)


def test_a_key_that_was_changed_and_changed_back_is_numbered_anew() -> None:
    isolated("""
        async def main():
            held = Held()
            batcher = queue(held)
            changing = Key(-5)
            await answered(batcher, held, [changing])
            changing.value = -6
            await answered(batcher, held, [Key(number) for number in range(600)])
            changing.value = -5
            await answered(batcher, held, [changing])
        asyncio.run(main())
    """)


@pytest.mark.asyncio
async def test_keys_are_forgotten_while_a_batch_goes_on_and_on() -> None:
    held = Held()
    batcher = queue(held, workers=2)
    submission = batcher.submit(None, key="long")
    await turns()
    long = held.batches.pop()
    keys = [Key(number) for number in range(1000)]
    alive = [weakref.ref(key) for key in keys]
    await answered(batcher, held, keys)
    del keys
    gc.collect()
    assert sum(key() is not None for key in alive) <= 600
    assert long.key == "long" and not submission.done()


@pytest.mark.asyncio
async def test_equal_keys_share_a_batch_and_others_do_not() -> None:
    held = Held()
    batcher = queue(held, workers=8)
    submissions = [batcher.submit(number, key=Key(number % 3)) for number in range(9)]
    await turns()
    assert [taken.items for taken in held.batches] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert [taken.key.value for taken in held.batches] == [0, 1, 2]
    assert not any(submission.done() for submission in submissions)


@pytest.mark.asyncio
async def test_what_a_cancelled_map_holds_back_gives_its_key_back() -> None:
    batcher = queue(Held(), queue_capacity=64, max_batch_size=1)
    client = Key(-1)
    alive = weakref.ref(client)
    mapped = batcher.map(range(80), client=client)
    mapped.cancel()
    del client, mapped
    await turns()
    for number in range(600):
        submission = batcher.submit(None, client=number)
        submission.cancel()
    gc.collect()
    assert alive() is None


# --- ends ---


@pytest.mark.asyncio
async def test_a_map_that_was_answered_can_be_awaited_again() -> None:
    held = Held()
    batcher = queue(held)
    mapped = batcher.map([1, 2])
    await turns()
    held.batches[0].complete(["a", "b"])
    assert await guarded(mapped) == ["a", "b"]
    assert await guarded(mapped) == ["a", "b"]


@pytest.mark.asyncio
async def test_a_deadline_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="deadline"):
        queue().submit(1, deadline=float("nan"))


def test_nothing_of_a_queue_outlives_its_loop() -> None:
    class Item:
        pass

    items = [Item() for _ in range(100)]
    alive = [weakref.ref(item) for item in items]
    taking, release, done = threading.Event(), threading.Event(), threading.Event()

    async def main() -> None:
        batcher = queue(queue_capacity=64)

        def work() -> None:
            taken = batcher.next_batch(0)
            taking.set()
            release.wait()
            taken.complete(taken.items)
            done.set()

        threading.Thread(target=work).start()
        mapped = batcher.map(items)
        await eventually(taking.is_set)
        assert not mapped.done()

    asyncio.run(main())
    items.clear()
    release.set()
    assert done.wait(GUARD)
    # Another loop's entries replace the old one's.
    asyncio.run(asyncio.sleep(0))

    async def other() -> None:
        current_hub()

    asyncio.run(other())
    gc.collect()
    assert [item for item in alive if item() is not None] == []


def test_a_queue_whose_functions_know_it_is_collected() -> None:
    class Owner:
        def __init__(self) -> None:
            self.queue = queue(self.on_batch, key=self.key)

        def key(self, item: Any) -> Any:
            return item

        def on_batch(self, taken: Any) -> None:
            taken.complete(taken.items)

    async def main() -> None:
        owner = Owner()
        assert await guarded(owner.queue.submit(7)) == 7
        alive = weakref.ref(owner)
        del owner
        await turns()
        gc.collect()
        assert alive() is None

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_leaves_its_parents_batches_alone() -> None:
    isolated("""
        from headrace import errors

        async def main():
            held = Held()
            batcher = queue(held)
            submission = batcher.submit(1)
            await turns()
            child = os.fork()
            if child == 0:
                refused = 0
                for call in (lambda: held.batches[0].complete([1]), lambda: held.batches[0].tickets):
                    try:
                        call()
                    except errors.ForkError:
                        refused += 1
                del submission
                held.batches.clear()
                gc.collect()
                os._exit(0 if refused == 2 else 1)
            _, status = os.waitpid(child, 0)
            assert status == 0, status
            held.batches[0].complete(["answer"])
            assert await guarded(submission) == "answer"
        asyncio.run(main())
    """)


def test_a_thread_that_waits_for_an_answer_leaves_as_the_interpreter_exits() -> None:
    # Run after what the library does at exit, since it is registered before.
    before = """
        import atexit, os, threading
        left = threading.Event()
        atexit.register(lambda: os._exit(0 if left.wait(10) else 1))
    """
    isolated(
        """
        def wait(batcher):
            try:
                batcher.submit_sync(1)
            except RuntimeError:
                left.set()

        async def main():
            held = Held()
            batcher = queue(held)
            threading.Thread(target=wait, args=(batcher,), daemon=True).start()
            await eventually(lambda: held.batches)
            return held

        held = asyncio.run(main())
        """,
        before,
    )
