"""Settings, and what is a function to a batcher: told apart, and refused by name, when it is made."""

from __future__ import annotations

import asyncio
import functools
import math

import headrace as hr
import pytest

from batches import batching, collected, double, double_async
from support import eventually

pytestmark = pytest.mark.asyncio

WRONG = [
    {"max_batch_size": 0},
    {"max_batch_size": -1},
    {"max_batch_size": 65_537},
    {"max_latency": -0.1},
    {"max_latency": math.nan},
    {"linger": -1},
    {"linger": math.inf},
    {"max_cost": 0},
    {"queue_cost": 0},
    {"queue_cost": 1, "max_cost": 2},
    {"allowed_sizes": [4, 2, 32]},
    {"allowed_sizes": [4]},
    {"allowed_sizes": [0, 32]},
    {"workers": 0},
    {"workers": 1025},
    {"queue_capacity": 31},
    {"queue_capacity": -1},
    {"max_in_flight_per_client": 0},
    {"timeout": 0},
    {"timeout": -1},
    {"timeout": math.nan},
    {"response_timeout": 0},
    {"aging": 0},
    {"priorities": 0},
    {"priorities": 65},
    {"startup_timeout": 0},
    {"callback_timeout": 0},
    {"name": ""},
]


@pytest.mark.parametrize("setting", WRONG, ids=str)
async def test_a_setting_out_of_range_is_refused_by_its_name(setting):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))}\\b"):
        hr.Batcher(double, **setting)


async def test_defaults_are_what_the_documentation_says():
    async with batching(double) as batcher:
        stats = batcher.stats()
        assert (stats.max_batch_size, batcher.timeout, batcher.name) == (32, 60.0, "double")
        batcher.pause()
        waits = [batcher.submit(number) for number in range(128)]
        with pytest.raises(hr.Rejected, match="queue_capacity=128"):
            batcher.submit(128)
        batcher.resume()
        await asyncio.gather(*waits)


class Doubler:
    def process(self, batch):
        return double(batch)


class AsyncDoubler:
    async def process(self, batch):
        return double(batch)


class Callable_:
    def __call__(self, batch):
        return double(batch)


class AsyncCallable:
    async def __call__(self, batch):
        return double(batch)


def add(number, batch):
    return [number * item for item in batch]


RESULTS = {
    "function": double,
    "coroutine": double_async,
    "lambda": lambda batch: double(batch),
    "partial": functools.partial(add, 2),
    "bound method": Doubler().process,
    "object with process": Doubler(),
    "class with process": Doubler,
    "object with async process": AsyncDoubler(),
    "class with async process": AsyncDoubler,
    "callable object": Callable_(),
    "callable class": Callable_,
    "async callable object": AsyncCallable(),
    "async callable class": AsyncCallable,
}


@pytest.mark.parametrize("kind", RESULTS)
async def test_every_kind_of_function_answers(kind):
    async with batching(RESULTS[kind]) as batcher:
        assert await batcher.map(range(5)) == [0, 2, 4, 6, 8]
        with pytest.raises(TypeError, match="use submit, not stream"):
            batcher.stream(1)


def counting(batch):
    for number in range(3):
        yield [number] * len(batch)


async def counting_async(batch):
    for number in range(3):
        yield dict.fromkeys(range(len(batch)), number)


class Counter:
    def process(self, batch):
        return counting(batch)

    def __call__(self, batch):
        yield from counting(batch)


class Steps:
    def __init__(self):
        self.requests = {}

    def add(self, requests):
        self.requests.update({ticket: 0 for ticket, _ in requests})

    def step(self):
        results = [(ticket, done, done == 2) for ticket, done in self.requests.items()]
        self.requests = {ticket: done + 1 for ticket, done in self.requests.items() if done < 2}
        return results

    def remove(self, tickets):
        for ticket in tickets:
            self.requests.pop(ticket, None)

    def capacity(self):
        return 4 - len(self.requests)


class AsyncSteps(Steps):
    async def step(self):
        return super().step()


class AsyncThroughout(AsyncSteps):
    async def add(self, requests):
        super().add(requests)

    async def remove(self, tickets):
        super().remove(tickets)

    async def capacity(self):
        return super().capacity()


STREAMS = {
    "generator": counting,
    "async generator": counting_async,
    "bound generator": Counter().__call__,
    "step engine": Steps(),
    "class of step engines": Steps,
    "async step engine": AsyncSteps(),
    "class of async step engines": AsyncSteps,
    "step engine that is async throughout": AsyncThroughout,
}


@pytest.mark.parametrize("kind", STREAMS)
async def test_every_kind_of_streaming_function_streams(kind):
    async with batching(STREAMS[kind]) as batcher:
        assert batcher.streams
        streams = [batcher.stream(number) for number in range(10)]
        assert await asyncio.gather(*map(collected, streams)) == [[0, 1, 2]] * 10
        for method in (batcher.submit, batcher.submit_nowait, batcher.map):
            with pytest.raises(TypeError, match="use stream, not"):
                method([1])
        with pytest.raises(TypeError, match="use stream, not submit"):
            await asyncio.to_thread(batcher.submit_sync, 1)


class NoRemove:
    def add(self, requests): ...

    def step(self): ...

    def capacity(self): ...


class YieldingStep(Steps):
    def step(self):
        yield


class Nothing:
    pass


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (7, "nothing to batch for"),
        (None, "nothing to batch for"),
        (Nothing(), "nothing to batch for"),
        (Nothing, "neither a process method nor __call__"),
        (lambda: None, "must take one argument"),
        (lambda a, b: [], "must take one argument"),
        (NoRemove(), "no remove"),
        (YieldingStep(), "must return a list"),
    ],
)
async def test_what_is_no_function_of_a_batch_is_refused(function, words):
    with pytest.raises(TypeError, match=words):
        hr.Batcher(function)


@pytest.mark.parametrize("value", [1.5, "7", [1]])
@pytest.mark.parametrize("setting", ["max_batch_size", "workers", "queue_capacity", "priorities", "max_cost"])
async def test_a_setting_of_another_type_is_refused_by_its_name(setting, value):
    with pytest.raises(TypeError, match=f"{setting} must be a whole number, not .*{type(value).__name__}"):
        hr.Batcher(double, **{setting: value})


async def nothing():
    pass


@pytest.mark.parametrize(
    ("function", "settings", "kind", "words"),
    [
        (double, {"on_start": nothing}, TypeError, "on_start is asynchronous"),
        (double, {"warmup": 7}, TypeError, "warmup must be a function"),
        (double, {"key": "x"}, TypeError, "key must be a function"),
        (double, {"cost": 1}, TypeError, "cost must be a function"),
        (counting, {"isolate_failures": True}, ValueError, "isolate_failures"),
        (Steps(), {"workers": 2}, ValueError, "workers must be 1"),
    ],
)
async def test_settings_that_do_not_fit_the_function_are_refused(function, settings, kind, words):
    with pytest.raises(kind, match=words):
        hr.Batcher(function, **settings)


async def test_settings_can_be_changed_while_it_runs():
    sizes = []

    def note(batch):
        sizes.append(len(batch))
        return double(batch)

    async with batching(note, max_batch_size=4) as batcher:
        await batcher.map(range(8))
        batcher.configure(max_batch_size=2, timeout=7.0)
        await batcher.map(range(8))
        assert set(sizes[:2]) == {4} and set(sizes[2:]) == {2}
        assert (batcher.stats().max_batch_size, batcher.timeout) == (2, 7.0)
        with pytest.raises(ValueError, match=r"^max_batch_size\b"):
            batcher.configure(max_batch_size=0, timeout=9.0)
        assert (batcher.stats().max_batch_size, batcher.timeout) == (2, 7.0)
        for name, value in (("workers", 2), ("name", "x"), ("key", None)):
            with pytest.raises(ValueError, match=f"{name} cannot be changed"):
                batcher.configure(**{name: value})
        with pytest.raises(TypeError, match="no setting 'max_size'"):
            batcher.configure(max_size=1)


async def test_settings_can_be_changed_before_it_starts():
    batcher = hr.Batcher(double)
    batcher.configure(max_batch_size=2)
    assert batcher.stats().max_batch_size == 2
    async with batcher:
        await batcher.map(range(8))
        assert batcher.stats().avg_batch_size == 2


async def test_a_larger_queue_lets_a_map_go_on_that_waits_for_room():
    async with batching(double, max_batch_size=1, queue_capacity=1) as batcher:
        batcher.pause()
        mapped = asyncio.ensure_future(batcher.map(range(50)))
        await asyncio.sleep(0)
        assert batcher.stats().queued == 1
        batcher.configure(queue_capacity=100)
        await eventually(lambda: batcher.stats().queued == 50)
        batcher.resume()
        assert await mapped == double(list(range(50)))


async def test_batched_makes_a_batcher_of_a_function():
    @hr.batched
    async def plain(batch: list[int]) -> list[int]:
        return double(batch)

    @hr.batched(max_batch_size=2, name="pairs")
    def settled(batch: list[int]) -> list[int]:
        return double(batch)

    for batcher, name in ((plain, "plain"), (settled, "pairs")):
        assert isinstance(batcher, hr.Batcher) and batcher.name == name
        assert await batcher.submit(2) == 4
        assert repr(batcher) == f"<headrace.Batcher {name!r}, open>"
        assert await batcher.drain()
        assert repr(batcher) == f"<headrace.Batcher {name!r}, closed>"


async def test_generics_are_subscriptable_and_figures_shown():
    assert hr.Batcher[int, str]
    async with batching(double) as batcher:
        stats = batcher.stats()
        assert stats.avg_batch_size is stats.avg_fill_ratio is stats.avg_processing is None
        assert (
            stats.avg_queue_wait is stats.avg_formation is stats.rejection_rate is stats.timeout_rate is None
        )
        assert stats.min_batch_size_seen == stats.max_batch_size_seen == 0
        await batcher.submit(1)
        stats = batcher.stats()
        assert stats.min_batch_size_seen == stats.max_batch_size_seen == 1
        assert "items=1/1" in str(stats)
        assert stats.avg_processing > 0 and stats.avg_queue_wait > 0
        assert stats.execution.bounds[-1] == math.inf
        assert (stats.execution.count, stats.batch_size.sum) == (1, 1)
        with pytest.raises(AttributeError):
            stats.submitted = 3
