"""Loads that go as fast as they can: submitters, a map, and the slow function beside its bare loop (B1)."""

import asyncio
import time
from statistics import median
from typing import Any

from batching_arms import BATCH_SIZE, Batching
from batching_functions import MODEL, NOTHING, model, on_thread
from batching_place import Place
from bench import Figures


async def submit(place: Place) -> Figures:
    """Have submitters submit one item after the other to a function that costs nothing."""
    async with place.open(NOTHING) as batcher:
        return {"items_per_s": await _submitted_per_s(place, batcher)}


async def map_many(place: Place) -> Figures:
    """Map the same function over many items at once; the median of the rounds."""
    items = list(range(place.share_of("items")))
    async with place.open(NOTHING) as batcher:
        await batcher.map(items[: place.share_of("warm_up")])
        rates: list[float] = []
        for _ in range(place.params["rounds"]):
            start = time.perf_counter()
            answers = await batcher.map(items)
            rates.append(len(items) / (time.perf_counter() - start))
            _check(answers == items)
        return {"items_per_s": median(rates)}


async def slow(place: Place) -> Figures:
    """Have submitters submit to the slow function; or run it in a bare loop, where that is the arm."""
    if place.arm.name == "bare":
        return {"items_per_s": on_thread(lambda: _bare_per_s(place.params["items"]))}
    async with place.open(MODEL) as batcher:
        return {"items_per_s": await _submitted_per_s(place, batcher)}


async def _submitted_per_s(place: Place, batcher: Batching) -> float:
    """Return how many items a second a number of submitters get answered."""
    submitters = place.params["submitters"]

    async def submit(count: int) -> None:
        for item in range(count):
            _check(await batcher.submit(item) == item)

    async def all_submit(items: int) -> float:
        each = max(1, items // submitters)
        start = time.perf_counter()
        await asyncio.gather(*(submit(each) for _ in range(submitters)))
        return submitters * each / (time.perf_counter() - start)

    await all_submit(place.share_of("warm_up"))
    return await all_submit(place.share_of("items"))


def _bare_per_s(items: int) -> float:
    """Return how many items a second the slow function does in full batches, and nothing else."""
    batch: list[Any] = list(range(BATCH_SIZE))
    for _ in range(items // BATCH_SIZE // 10):
        model(batch)
    start = time.perf_counter()
    batches = items // BATCH_SIZE
    for _ in range(batches):
        model(batch)
    return batches * BATCH_SIZE / (time.perf_counter() - start)


def _check(is_right: bool) -> None:
    """Fail the run where an answer is not the one that is expected."""
    if not is_right:
        raise RuntimeError("an item was answered with another one's answer")
