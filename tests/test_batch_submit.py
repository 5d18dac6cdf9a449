"""What a submit gets: answers, errors and refusals, one by one, many at a time, and from threads."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import headrace as hr
import numpy
import pytest

from batches import DOUBLES, KINDS, Held, batching, double, double_async, gathered
from support import GUARD, eventually

pytestmark = pytest.mark.asyncio

each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
async def test_what_one_turn_submits_shares_a_batch(kind):
    sizes = []

    def note(batch):
        sizes.append(len(batch))
        return double(batch)

    async def note_async(batch):
        return note(batch)

    async with batching(note if kind == "thread" else note_async, max_batch_size=8) as batcher:
        assert await asyncio.gather(*(batcher.submit(number) for number in range(8))) == [
            number * 2 for number in range(8)
        ]
        assert sizes == [8]
        stats = batcher.stats()
        assert (stats.submitted, stats.completed, stats.batches["size"]) == (8, 8, 1)
        assert (stats.avg_batch_size, stats.avg_fill_ratio) == (8, 1)


@each_kind
async def test_a_batch_closes_when_it_is_taken_so_that_late_items_join(kind):
    held = Held(kind)
    async with batching(held.function) as batcher:
        first = asyncio.ensure_future(batcher.submit(0))
        await held.entered()
        others = []
        for number in range(1, 6):
            others.append(asyncio.ensure_future(batcher.submit(number)))
            await asyncio.sleep(0)
        held.open()
        assert await asyncio.gather(first, *others) == [0, 2, 4, 6, 8, 10]
        assert held.batches == [[0], [1, 2, 3, 4, 5]]


@each_kind
async def test_an_exception_in_a_slot_fails_that_item_alone(kind):
    def answer(batch):
        return [ValueError(number) if number % 2 else number for number in batch]

    held = Held(kind, answer)
    held.open()
    async with batching(held.function) as batcher:
        answers = await gathered(*(batcher.submit(number) for number in range(4)))
        assert answers[0::2] == [0, 2]
        assert [(type(error), error.args) for error in answers[1::2]] == [
            (ValueError, (1,)),
            (ValueError, (3,)),
        ]
        stats = batcher.stats()
        assert (stats.completed, stats.failed, stats.consecutive_errors) == (2, 2, 0)


@each_kind
async def test_one_exception_object_in_several_slots_is_no_ones_own(kind):
    shared = ValueError("shared")
    held = Held(kind, lambda batch: [shared for _ in batch])
    held.open()
    async with batching(held.function) as batcher:
        answers = await gathered(*(batcher.submit(number) for number in range(3)))
        assert len({id(error) for error in answers}) == 3
        assert [error if error is shared else error.__cause__ for error in answers] == [shared] * 3


@each_kind
async def test_a_function_that_raises_gives_each_caller_an_error_of_their_own(kind):
    raised = RuntimeError("out of cheese")

    def answer(batch):
        raise raised

    held = Held(kind, answer)
    held.open()
    async with batching(held.function) as batcher:
        answers = await gathered(*(batcher.submit(number) for number in range(3)))
        assert [type(error) for error in answers] == [hr.BatchFailed] * 3
        assert len({id(error) for error in answers}) == 3
        assert all(error.__cause__ is raised and error.size == 3 for error in answers)
        assert all("out of cheese" in str(error) for error in answers)
        stats = batcher.stats()
        assert (stats.failed, stats.consecutive_errors) == (3, 1)
        held.answer = double
        assert await batcher.submit(1) == 2
        assert batcher.stats().consecutive_errors == 0


@each_kind
@pytest.mark.parametrize("extra", [-1, 1, 5])
async def test_a_wrong_number_of_results_is_an_error_that_names_both(kind, extra):
    held = Held(kind, lambda batch: [0] * (len(batch) + extra))
    held.open()
    async with batching(held.function) as batcher:
        for error in await gathered(*(batcher.submit(number) for number in range(4))):
            assert type(error) is hr.WrongResultCount
            assert (error.expected, error.actual) == (4, 4 + extra)
            assert "4" in str(error) and str(4 + extra) in str(error)


@each_kind
@pytest.mark.parametrize("answer", [None, "ab", b"ab", {0: 1, 1: 2}, {1, 2}, 7, iter([1, 2])])
async def test_what_is_no_sequence_of_results_fails_the_batch(kind, answer):
    held = Held(kind, lambda _: answer)
    held.open()
    async with batching(held.function) as batcher:
        for error in await gathered(batcher.submit(0), batcher.submit(1)):
            assert type(error) is hr.BatchFailed
            assert type(error.__cause__) is TypeError
            assert "sequence of results" in str(error.__cause__)


@each_kind
@pytest.mark.parametrize("shape", [tuple, numpy.array])
async def test_results_may_be_any_sequence(kind, shape):
    held = Held(kind, lambda batch: shape(double(batch)))
    held.open()
    async with batching(held.function) as batcher:
        assert await asyncio.gather(*(batcher.submit(number) for number in range(3))) == [0, 2, 4]


async def test_a_lambda_that_returns_a_coroutine_is_told_to_be_one():
    async with batching(lambda batch: double_async(batch)) as batcher:
        with pytest.raises(hr.BatchFailed, match="async def"):
            await batcher.submit(1)


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        # In a task it would end the loop, as it does anywhere on it.
        ("thread", SystemExit("x")),
        ("thread", asyncio.CancelledError("x")),
        ("thread", StopIteration("x")),
        ("task", asyncio.CancelledError("x")),
        ("task", StopIteration("x")),
    ],
    ids=repr,
)
async def test_whatever_a_function_raises_its_callers_are_told_and_it_goes_on(kind, raised):

    def answer(batch):
        raise raised

    held = Held(kind, answer)
    held.open()
    async with batching(held.function) as batcher:
        (error,) = await gathered(batcher.submit(0))
        assert type(error) is hr.BatchFailed
        held.answer = double
        assert await batcher.submit(1) == 2


@each_kind
async def test_an_item_may_be_answered_ahead_of_its_batch(kind):
    held = Held(kind)
    ahead = {}

    def note(batch):
        ahead["batch"] = batch
        ahead["told"] = [batch.set_result(1, "ahead"), batch.set_result(2, KeyError("ahead"))]
        ahead["again"] = batch.set_result(1, "twice")
        return held.function(batch)

    async def note_async(batch):
        return await note(batch)

    async with batching(note if kind == "thread" else note_async) as batcher:
        waits = [asyncio.ensure_future(batcher.submit(number)) for number in range(4)]
        await held.entered()
        assert await waits[1] == "ahead"
        with pytest.raises(KeyError):
            await waits[2]
        assert not waits[0].done()
        assert ahead["batch"].cancelled(1) and not ahead["batch"].cancelled(0)
        held.open()
        assert [await waits[0], await waits[3]] == [0, 6]
        assert (ahead["told"], ahead["again"]) == ([True, True], False)


@each_kind
async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(kind):
    held = Held(kind)
    async with batching(held.function, max_batch_size=2, queue_capacity=2) as batcher:
        waits = [asyncio.ensure_future(batcher.submit(0))]
        await held.entered()
        waits += [batcher.submit(1), batcher.submit(2)]
        for submit in (batcher.submit, batcher.submit_nowait):
            with pytest.raises(hr.Rejected) as refused:
                submit(3)
            assert refused.value.reason == "queue_full"
            assert "queue_capacity=2" in str(refused.value)
        held.open()
        assert await asyncio.gather(*waits) == [0, 2, 4]
        stats = batcher.stats()
        assert (stats.rejected["queue_full"], stats.items_rejected, stats.rejection_rate) == (2, 2, 0.4)


@each_kind
async def test_a_map_is_never_refused_for_its_size_and_keeps_the_order(kind):
    drawn = []

    def items():
        for number in range(2000):
            drawn.append(number)
            yield number

    held = Held(kind)
    async with batching(held.function, max_batch_size=4, queue_capacity=8) as batcher:
        mapped = asyncio.ensure_future(batcher.map(items()))
        await held.entered()
        # Items are taken as there is room, not all at once.
        assert len(drawn) < 20
        held.open()
        assert await mapped == [number * 2 for number in range(2000)]
        assert max(map(len, held.batches)) == 4
        assert await batcher.map([]) == []
        assert batcher.stats().items_rejected == batcher.stats().submitted - 2000


@each_kind
async def test_a_map_raises_its_first_error_when_all_have_ended_or_returns_them(kind):
    held = Held(kind, lambda batch: [ValueError(n) if n in (3, 7) else n for n in batch])
    held.open()
    async with batching(held.function, max_batch_size=4) as batcher:
        with pytest.raises(ValueError, match="3"):
            await batcher.map(range(10))
        assert batcher.stats().completed == 8
        answers = await batcher.map(range(10), return_exceptions=True)
        assert [n for n, answer in enumerate(answers) if isinstance(answer, ValueError)] == [3, 7]
        with pytest.raises(TypeError):
            await batcher.map(None)


@each_kind
async def test_a_map_that_is_cancelled_takes_its_items_with_it(kind):
    held = Held(kind)
    async with batching(held.function, max_batch_size=1) as batcher:
        mapped = asyncio.ensure_future(batcher.map(range(100)))
        await held.entered()
        mapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await mapped
        held.open()
        await eventually(lambda: batcher.stats().in_flight == 0)
        assert held.batches == [[0]]
        assert batcher.stats().queued == 0


@each_kind
async def test_submit_sync_from_many_threads_shares_batches(kind):
    async with batching(DOUBLES[kind], max_batch_size=16) as batcher:

        def work(number):
            return [batcher.submit_sync(number * 100 + each) for each in range(50)]

        answers = await asyncio.gather(*(asyncio.to_thread(work, number) for number in range(8)))
        assert answers == [[(n * 100 + each) * 2 for each in range(50)] for n in range(8)]
        assert batcher.stats().completed == 400


@each_kind
async def test_submit_sync_raises_what_submit_does(kind):
    held = Held(kind, lambda batch: [ValueError("no")])
    held.open()
    async with batching(held.function, priorities=2) as batcher:
        with pytest.raises(ValueError, match="no"):
            await asyncio.to_thread(batcher.submit_sync, 1)
        with pytest.raises(hr.Rejected) as refused:
            await asyncio.to_thread(lambda: batcher.submit_sync(1, priority=2))
        assert refused.value.reason == "invalid"
    with pytest.raises(hr.Closed):
        await asyncio.to_thread(batcher.submit_sync, 1)


async def test_submit_sync_is_refused_where_it_would_wait_for_itself():
    async def on_its_loop(batch):
        return [batcher.submit_sync(1)]

    async with batching(on_its_loop) as batcher:
        with pytest.raises(RuntimeError, match="event loop"):
            batcher.submit_sync(1)
        with pytest.raises(hr.BatchFailed, match="event loop"):
            await batcher.submit(1)

    def on_its_thread(batch):
        return [batcher.submit_sync(1)]

    async with batching(on_its_thread, workers=2) as batcher:
        with pytest.raises(hr.BatchFailed, match="would wait for its own thread"):
            await batcher.submit(1)

    with pytest.raises(RuntimeError, match="has not started"):
        await asyncio.to_thread(hr.Batcher(double).submit_sync, 1)


async def test_another_batchers_thread_may_submit_and_wait():
    async with batching(double) as inner:

        def outer(batch):
            return [inner.submit_sync(item) + 1 for item in batch]

        async with batching(outer) as batcher:
            assert await batcher.map(range(5)) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("return_exceptions", [False, True])
async def test_a_map_over_what_has_no_end_ends_with_its_batcher(return_exceptions):
    batcher = hr.Batcher(double)
    mapped = asyncio.ensure_future(batcher.map(itertools.count(), return_exceptions=return_exceptions))
    await eventually(lambda: batcher.stats().completed > 0)
    batcher.close()
    with pytest.raises(hr.Closed):
        await asyncio.wait_for(mapped, GUARD)


async def test_others_are_let_in_while_a_function_waits():
    held = Held("task")
    async with batching(held.function) as batcher:
        first = asyncio.ensure_future(batcher.submit(1))
        await held.entered()
        second = batcher.submit(2)
        held.open()
        assert [await first, await second] == [2, 4]


@each_kind
async def test_the_batch_knows_what_is_known_of_its_items(kind):
    seen = {}

    def answer(batch):
        assert isinstance(batch, list) and isinstance(batch, hr.Batch)
        seen.update(
            key=batch.key,
            worker=batch.worker,
            reason=batch.reason,
            cost=batch.cost,
            left=[batch.remaining(slot) for slot in range(len(batch))],
            least=batch.remaining(),
            cancelled=batch.cancelled(0),
            tickets=batch.tickets,
            padded=batch.pad("-"),
        )
        return list(batch)

    held = Held(kind, answer)
    held.open()
    async with batching(
        held.function,
        max_batch_size=8,
        allowed_sizes=[1, 4, 8],
        key=lambda item: item[0],
        cost=lambda item: len(item),
        workers=2,
    ) as batcher:
        await asyncio.gather(
            batcher.submit("aa"), batcher.submit("abc", timeout=None), batcher.submit("a", timeout=5)
        )
        assert (seen["key"], seen["reason"], seen["cost"], seen["cancelled"]) == ("a", "idle", 6, False)
        assert seen["worker"] in (0, 1)
        assert seen["padded"] == ["aa", "abc", "a", "-"]
        assert len(set(seen["tickets"])) == 3
        assert seen["left"][1] is None
        assert 5 < seen["left"][0] <= 60
        assert 0 < seen["left"][2] <= 5
        assert 0 < seen["least"] <= 5


async def test_what_submit_returns_can_be_cancelled_and_looked_at():
    held = Held("task")
    async with batching(held.function, max_batch_size=1) as batcher:
        first, second = batcher.submit(1), batcher.submit(2)
        await held.entered()
        assert second.cancel() and not second.cancel() and second.done()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not first.done()
        held.open()
        assert await first == 2
        assert first.done() and not first.cancel()
        assert held.batches == [[1]]


async def test_64_threads_never_exceed_a_clients_cap_nor_are_refused_below_it():
    cap, lock, inside, most, refusals = 4, threading.Lock(), Counter(), Counter(), Counter()

    def note(batch):
        for change in (1, -1):
            with lock:
                for client in batch:
                    inside[client] += change
                    most[client] = max(most[client], inside[client])
        return list(batch)

    def hammer(client):
        for _ in range(30):
            try:
                assert batcher.submit_sync(client, client=client) == client
            except hr.Rejected as refused:
                assert refused.reason == "client_cap"
                with lock:
                    refusals[client] += 1

    loop = asyncio.get_running_loop()
    async with batching(note, max_in_flight_per_client=cap, queue_capacity=1024, workers=2) as batcher:
        with ThreadPoolExecutor(64) as pool:
            # As many threads as the cap for each of 16 clients, which nobody may refuse.
            await asyncio.gather(*(loop.run_in_executor(pool, hammer, n % 16) for n in range(64)))
            assert (batcher.stats().completed, refusals) == (64 * 30, {})
            # All for one client.
            await asyncio.gather(*(loop.run_in_executor(pool, hammer, "all") for _ in range(64)))
        assert batcher.stats().rejected["client_cap"] == refusals["all"] > 0
        assert max(most.values()) <= cap

        # One too many is refused, and let in as soon as another has its answer.
        batcher.pause()
        waits = [batcher.submit("c", client="c") for _ in range(cap)]
        with pytest.raises(hr.Rejected):
            batcher.submit("c", client="c")
        batcher.resume()
        assert await waits[0] == "c"
        assert await batcher.submit("c", client="c") == "c"
        await asyncio.gather(*waits[1:])
