"""When a batch is closed and what is in it, as a user sees it. Each decision has its tests in Rust."""

from __future__ import annotations

import asyncio
import threading
import time

import headrace as hr
import pytest

from batches import Held, batching, double, gathered
from support import GUARD, eventually

pytestmark = pytest.mark.asyncio


def noting(sizes, answer=double):
    async def note(batch):
        sizes.append((list(batch), batch.reason))
        return answer(batch)

    return note


async def test_a_batch_that_is_not_full_waits_for_max_latency_and_never_less():
    seen = []
    async with batching(noting(seen), max_latency=0.05, max_batch_size=4) as batcher:
        begun = time.monotonic()
        first = asyncio.ensure_future(batcher.submit(1))
        await asyncio.sleep(0.02)
        second = batcher.submit(2)
        assert await asyncio.gather(first, second) == [2, 4]
        assert time.monotonic() - begun >= 0.05
        assert seen == [([1, 2], "latency")]
        # A full one does not wait.
        await asyncio.gather(*(batcher.submit(number) for number in range(4)))
        assert seen[-1] == ([0, 1, 2, 3], "size")


async def test_a_batch_lingers_until_nothing_has_come_for_a_while():
    seen = []
    async with batching(noting(seen), linger=0.03) as batcher:
        waits = []
        for number in range(3):
            waits.append(asyncio.ensure_future(batcher.submit(number)))
            await asyncio.sleep(0)
        begun = time.monotonic()
        await asyncio.gather(*waits)
        assert time.monotonic() - begun >= 0.025
        assert seen == [([0, 1, 2], "linger")]


async def test_flush_closes_the_windows_of_what_waits():
    seen = []
    async with batching(noting(seen), max_latency=60) as batcher:
        waits = [asyncio.ensure_future(batcher.submit(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert seen == []
        batcher.flush()
        assert await asyncio.gather(*waits) == [0, 2, 4]
        assert seen == [([0, 1, 2], "flush")]


async def test_a_drain_ends_the_windows_and_a_pause():
    seen = []
    async with batching(noting(seen), max_latency=60) as batcher:
        batcher.pause()
        waits = [asyncio.ensure_future(batcher.submit(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert await batcher.drain()
        assert [wait.result() for wait in waits] == [0, 2, 4]
        assert seen == [([0, 1, 2], "drain")]


async def test_a_pause_holds_batches_back_but_not_items():
    seen = []
    batcher = hr.Batcher(noting(seen))
    batcher.pause()
    async with batcher:
        wait = asyncio.ensure_future(batcher.submit(1))
        expires = asyncio.ensure_future(batcher.submit(2, timeout=0.01))
        with pytest.raises(hr.Expired):
            await expires
        assert seen == [] and batcher.stats().queued == 1
        batcher.resume()
        assert await wait == 2
        assert seen == [([1], "idle")]


async def test_items_of_one_key_share_a_batch_and_a_rare_one_is_not_starved():
    seen = []
    async with batching(noting(seen), key=lambda n: n % 3, max_batch_size=4, queue_capacity=2048) as batcher:
        batcher.pause()
        # One of a rare key behind many of two others, which keep coming.
        many = [batcher.submit(number) for number in range(1000) if number % 3]
        rare = batcher.submit(3000)
        more = [batcher.submit(number) for number in range(1000) if number % 3]
        batcher.resume()
        assert await rare == 6000
        position = next(index for index, (items, _) in enumerate(seen) if 3000 in items)
        assert position <= len(many) // 4 + 2
        await asyncio.gather(*many, *more)
        assert all(len({item % 3 for item in items}) == 1 and len(items) <= 4 for items, _ in seen)


async def test_a_key_given_with_the_submit_wins():
    seen = []
    async with batching(noting(seen), key=lambda item: "by the function") as batcher:
        await asyncio.gather(batcher.submit(1), batcher.submit(2, key="own"), batcher.submit(3))
        assert sorted(items for items, _ in seen) == [[1, 3], [2]]


async def test_a_batch_stays_within_its_cost():
    seen = []
    async with batching(noting(seen), cost=lambda n: n, max_cost=10) as batcher:
        await batcher.map([4, 4, 4, 9, 2, 10, 1, 1])
        assert [items for items, _ in seen] == [[4, 4], [4], [9], [2], [10], [1, 1]]
        with pytest.raises(hr.Rejected) as refused:
            batcher.submit(11)
        assert refused.value.reason == "too_large"
        assert await batcher.submit(11, cost=3) == 22


async def test_a_padded_batch_costs_its_largest_item_times_its_size():
    seen = []
    async with batching(noting(seen), cost=lambda n: n, max_cost=12, padded_cost=True) as batcher:
        await batcher.map([1, 1, 4, 4, 6, 1])
        assert [items for items, _ in seen] == [[1, 1, 4], [4, 6], [1]]


async def test_cost_that_waits_is_bounded():
    async with batching(double, cost=lambda n: n, queue_cost=10) as batcher:
        batcher.pause()
        waits = [batcher.submit(6), batcher.submit(4)]
        with pytest.raises(hr.Rejected) as refused:
            batcher.submit(1)
        assert refused.value.reason == "queue_cost"
        assert batcher.stats().queued_cost == 10
        batcher.resume()
        assert await asyncio.gather(*waits) == [12, 8]


def raises(item):
    raise KeyError(item)


@pytest.mark.parametrize("setting", ["key", "cost"])
async def test_a_key_or_cost_function_that_raises_harms_only_its_item(setting):
    def function(item):
        return raises(item) if item == 1 else 1

    async with batching(double, **{setting: function}) as batcher:
        waits = [batcher.submit(0)]
        with pytest.raises(hr.Rejected) as refused:
            batcher.submit(1)
        waits.append(batcher.submit(2))
        assert refused.value.reason == "invalid"
        assert type(refused.value.__cause__) is KeyError
        assert await asyncio.gather(*waits) == [0, 4]
        answers = await batcher.map(range(3), return_exceptions=True)
        assert [type(answer) for answer in answers] == [int, hr.Rejected, int]
        assert batcher.stats().rejected["invalid"] == 2


@pytest.mark.parametrize("setting", ["key", "cost"])
async def test_a_key_or_cost_function_that_is_slow_holds_up_only_its_item(setting):
    is_asked, may_answer = threading.Event(), threading.Event()

    def find(item):
        if item == 1:
            is_asked.set()
            assert may_answer.wait(GUARD)
        return 1

    async with batching(double, **{setting: find}) as batcher:
        slow = asyncio.ensure_future(asyncio.to_thread(batcher.submit_sync, 1))
        await eventually(is_asked.is_set)
        assert await batcher.submit(2) == 4
        assert not slow.done()
        may_answer.set()
        assert await slow == 2


class Unhashable:
    __hash__ = None


class HashRaises:
    def __hash__(self):
        raise KeyError("no hash")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cost", -1),
        ("cost", 1.5),
        ("cost", "1"),
        ("cost", 1 << 70),
        pytest.param("key", Unhashable(), id="key-Unhashable"),
        ("key", []),
        pytest.param("key", HashRaises(), id="key-HashRaises"),
    ],
    ids=str,
)
async def test_a_key_or_cost_that_is_none_harms_only_its_item(setting, value):
    async with batching(double, **{setting: lambda item: value if item == 1 else 1}) as batcher:
        with pytest.raises(hr.Rejected) as refused:
            batcher.submit(1)
        assert refused.value.reason == "invalid"
        assert refused.value.__cause__ is not None
        assert await batcher.submit(2) == 4


async def test_a_key_function_that_submits_itself_is_served():
    inner = []

    def key(item):
        if item == 1:
            inner.append(batcher.submit(2))
        return 0

    async with batching(double, key=key) as batcher:
        assert await batcher.submit(1) == 2
        assert await inner[0] == 4


async def test_the_more_urgent_are_taken_first_and_equals_in_their_order():
    seen = []
    async with batching(noting(seen), priorities=3, max_batch_size=2) as batcher:
        batcher.pause()
        waits = [batcher.submit((p, n), priority=p) for n, p in enumerate([2, 1, 0, 2, 1, 0])]
        with pytest.raises(hr.Rejected) as refused:
            batcher.submit(0, priority=3)
        assert refused.value.reason == "invalid"
        batcher.resume()
        await asyncio.gather(*waits)
        assert [item for items, _ in seen for item in items] == [
            (0, 2),
            (0, 5),
            (1, 1),
            (1, 4),
            (2, 0),
            (2, 3),
        ]


async def test_with_aging_what_has_waited_long_goes_before_what_is_more_urgent():
    seen = []
    async with batching(noting(seen), priorities=2, aging=0.01, max_batch_size=1) as batcher:
        batcher.pause()
        old = batcher.submit(1, priority=1)
        await asyncio.sleep(0.03)
        new = batcher.submit(0, priority=0)
        batcher.resume()
        await asyncio.gather(old, new)
        assert [items for items, _ in seen] == [[1], [0]]


@pytest.mark.parametrize("kind", ["task", "thread"])
async def test_order_holds_within_priority_key_and_client(kind):
    held = Held(kind)
    held.open()
    async with batching(held.function, priorities=2, max_batch_size=7, queue_capacity=4096) as batcher:
        waits = []
        for number in range(2000):
            terms = {"priority": number % 2, "key": number % 3, "client": number % 5}
            waits.append(batcher.submit(number, **terms))
            if not number % 50:
                await asyncio.sleep(0)
        await asyncio.gather(*waits)
        by_terms = {}
        for batch in held.batches:
            for number in batch:
                by_terms.setdefault((number % 2, number % 3, number % 5), []).append(number)
        assert all(numbers == sorted(numbers) for numbers in by_terms.values())
        assert sum(map(len, by_terms.values())) == 2000


async def test_isolation_finds_the_item_that_makes_the_others_fail():
    batches = []

    async def fails(batch):
        batches.append((list(batch), batch.reason))
        if 5 in batch:
            raise ValueError("five")
        return double(batch)

    async with batching(fails, isolate_failures=True) as batcher:
        answers = await gathered(*(batcher.submit(number) for number in range(8)))
        assert [a for a in answers if not isinstance(a, Exception)] == [0, 2, 4, 6, 8, 12, 14]
        assert type(answers[5]) is hr.BatchFailed and answers[5].size == 1
        assert type(answers[5].__cause__) is ValueError
        assert batches[0] == (list(range(8)), "idle")
        assert {reason for _, reason in batches[1:]} == {"isolation"}
        stats = batcher.stats()
        assert (stats.completed, stats.failed, stats.batches["isolation"]) == (7, 1, len(batches) - 1)


@pytest.mark.parametrize("kind", ["task", "thread"])
@pytest.mark.parametrize("wrong", [lambda batch: [0], lambda batch: None])
async def test_isolation_works_on_threads_too_and_for_answers_that_are_none(kind, wrong):
    def answer(batch):
        return wrong(batch) if 3 in batch and len(batch) > 1 else double(batch)

    held = Held(kind, answer)
    held.open()
    async with batching(held.function, isolate_failures=True) as batcher:
        answers = await gathered(*(batcher.submit(number) for number in range(8)))
        if wrong([]) is None:
            assert answers == double(list(range(8)))
        else:
            # A wrong count names both numbers; it is not run again.
            assert {type(answer) for answer in answers} == {hr.WrongResultCount}


async def test_up_to_so_many_batches_run_at_once():
    held = Held("task")
    async with batching(held.function, max_batch_size=1, workers=3) as batcher:
        waits = [asyncio.ensure_future(batcher.submit(number)) for number in range(5)]
        await eventually(lambda: batcher.stats().in_flight == 3)
        assert len(held.batches) == 3
        held.open()
        assert await asyncio.gather(*waits) == [0, 2, 4, 6, 8]
