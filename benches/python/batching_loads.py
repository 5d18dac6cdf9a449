"""Loads whose items arrive by themselves: what a batcher adds (B2), its window, its waits, and overload."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from batching_arms import BATCH_SIZE, Batching, Function
from batching_arrivals import arrivals
from batching_functions import MODEL, NOTHING, measure_pace, on_thread
from batching_ideal import waits_s
from batching_place import Place
from bench import Figures, percentile


@dataclass
class Answers:
    """When items were submitted and answered, by the monotonic clock in ns, in the order of their arrival;
    `None` for those that missed their time.
    """

    batcher: Batching
    late: tuple[type[Exception], ...]
    submitted_ns: list[int] = field(default_factory=list)
    answered_ns: list[int | None] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def arrived(self, _moment_ns: int) -> None:
        """Submit one item, in a task of its own."""
        task = asyncio.get_running_loop().create_task(self._submit(len(self.answered_ns)))
        self.submitted_ns.append(0)
        self.answered_ns.append(None)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _submit(self, index: int) -> None:
        self.submitted_ns[index] = submitted_ns = time.monotonic_ns()
        try:
            # The item is the moment, for a function that wants to know.
            answer = await self.batcher.submit(submitted_ns)
        except self.late:
            return
        self.answered_ns[index] = time.monotonic_ns()
        if answer != submitted_ns:
            raise RuntimeError("an item was answered with another one's answer")

    async def all_over(self) -> None:
        """Wait until every item has been answered, or has missed its time."""
        await asyncio.gather(*self._tasks)

    def took_ns(self, from_index: int = 0) -> list[int]:
        """Return the times of what was answered, but for the first so many items."""
        pairs = zip(self.submitted_ns[from_index:], self.answered_ns[from_index:], strict=True)
        return [answered - submitted for submitted, answered in pairs if answered is not None]


async def _arrive(place: Place, batcher: Batching, rate: float) -> Answers:
    """Submit what arrives, at `rate` a second, until all is over."""
    answers = Answers(batcher, place.late)
    await arrivals(place.other_cpu, rate, place.params["seconds"], place.repeat, answers.arrived)
    await answers.all_over()
    return answers


def _warm_up(answers: Answers, share: float = 0.15) -> int:
    """Return how many items come before those that count."""
    return int(len(answers.submitted_ns) * share)


async def poisson(place: Place) -> Figures:
    """Time items that arrive one by one, with a function that costs nothing: all of it is added."""
    async with place.open(NOTHING) as batcher:
        answers = await _arrive(place, batcher, place.params["rate"])
    took_us = [took / 1e3 for took in answers.took_ns(_warm_up(answers))]
    return {"added_p50_us": percentile(took_us, 50), "added_p99_us": percentile(took_us, 99)}


async def window(place: Place) -> Figures:
    """See how long after the window of its oldest item each batch is run."""
    window_s, is_async = place.params["window_s"], place.params["is_async"]
    seen: list[tuple[int, int]] = []

    def note(items: list[Any]) -> list[Any]:
        # A full batch does not wait for its window.
        if len(items) < BATCH_SIZE:
            seen.append((time.monotonic_ns(), min(items)))
        return items

    async def note_on_loop(items: list[Any]) -> list[Any]:
        return note(items)

    function = Function("note", note_on_loop if is_async else note, is_async)
    async with place.open(function, window_s=window_s) as batcher:
        await _arrive(place, batcher, place.params["rate"])
    counted = seen[len(seen) // 10 :]
    late_us = [(run_ns - oldest_ns) / 1e3 - window_s * 1e6 for run_ns, oldest_ns in counted]
    return {
        "late_p50_us": percentile(late_us, 50),
        "late_p99_us": percentile(late_us, 99),
        "least_us": min(late_us),
    }


async def waiting(place: Place) -> Figures:
    """Compare the mean time of items at a given load with the ideal for the very same arrivals."""
    pace = on_thread(lambda: measure_pace(place.params["pace_calls"]))
    async with place.open(MODEL, capacity=place.params["capacity"]) as batcher:
        answers = await _arrive(place, batcher, pace.items_per_s * place.params["load"])
    first = _warm_up(answers)
    if None in answers.answered_ns:
        raise RuntimeError("an item was not answered")
    # Tasks start in the order of arrival.
    ideal_s = fmean(waits_s([moment / 1e9 for moment in answers.submitted_ns], pace.of)[first:])
    took_s = [took / 1e9 for took in answers.took_ns(first)]
    return {
        "of_ideal": fmean(took_s) / ideal_s,
        "mean_ms": fmean(took_s) * 1e3,
        "ideal_ms": ideal_s * 1e3,
        "p99_ms": percentile(took_s, 99) * 1e3,
    }


async def overload(place: Place) -> Figures:
    """Offer more than can be done, each item with a deadline; count what is answered in time."""
    timeout_s, seconds = place.params["timeout_s"], place.params["seconds"]
    pace = on_thread(lambda: measure_pace(place.params["pace_calls"]))
    settings = {"timeout_s": timeout_s, "capacity": place.params["capacity"]}
    async with place.open(MODEL, **settings) as batcher:
        answers = await _arrive(place, batcher, pace.items_per_s * place.params["times"])
    start_ns, end_ns = _edges(answers.submitted_ns, place.params["settle_s"])
    counted_s = (end_ns - start_ns) / 1e9
    took_ms = [
        (answered - submitted) / 1e6
        for submitted, answered in zip(answers.submitted_ns, answers.answered_ns, strict=True)
        if answered is not None and start_ns <= answered < end_ns
    ]
    in_time = _count(took_ms, lambda took: took <= timeout_s * 1e3)
    offered = _count(answers.submitted_ns, lambda moment: start_ns <= moment < end_ns)
    figures = {
        "goodput_of_capacity": in_time / counted_s / pace.items_per_s,
        "offered_of_capacity": offered / counted_s / pace.items_per_s,
        "capacity_per_s": pace.items_per_s,
        "seconds": seconds,
    }
    if took_ms:
        figures |= {"answered_p50_ms": percentile(took_ms, 50), "answered_p99_ms": percentile(took_ms, 99)}
    return figures


def _edges(submitted_ns: list[int], settle_s: float) -> tuple[int, int]:
    """Return when counting starts, after the queue has had time to fill, and when arrivals end."""
    return submitted_ns[0] + int(settle_s * 1e9), submitted_ns[-1]


def _count(values: list[Any], holds: Callable[[Any], bool]) -> int:
    """Return for how many values something holds."""
    return sum(map(holds, values))
