"""Random operations on one batcher after the other: every item ends exactly once, and every count agrees with
what the callers saw. ``HEADRACE_SEED`` repeats the draws of a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from collections import Counter

import headrace as hr
import pytest

from batches import is_quiet
from support import GUARD, eventually

pytestmark = pytest.mark.asyncio

SEED = int(os.environ.get("HEADRACE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


class Seen:
    """What callers were told, and what the function was given."""

    def __init__(self):
        self.told = Counter()
        self.given = Counter()
        self.ended_before = set()
        self.wrong = []
        self.lock = threading.Lock()

    def note_batch(self, batch, most):
        with self.lock:
            if len(batch) > most:
                self.wrong.append(f"a batch of {len(batch)}")
            for number in batch:
                if number in self.ended_before:
                    self.wrong.append(f"{number} had ended before it was dispatched")
                self.given[number] += 1
                if self.given[number] > 1 and not self.isolates:
                    self.wrong.append(f"{number} was given twice")

    isolates = False


def answers(batch, draw):
    """Mostly right; sometimes an error for one, for all, or of the wrong number."""
    kind = draw.random()
    if kind < 0.03:
        raise RuntimeError("all")
    if kind < 0.05:
        return list(batch)[1:]
    return [ValueError(n) if draw.random() < 0.05 else n * 2 for n in batch]


async def told(seen, number, wait):
    """Waits for an item, and notes what became of it."""
    try:
        answer = await wait
        if answer != number * 2:
            seen.wrong.append(f"{number} was answered {answer}")
        seen.told["completed"] += 1
    except asyncio.CancelledError:
        seen.told["cancelled"] += 1
    except hr.Expired:
        seen.told["expired"] += 1
        with seen.lock:
            if seen.given[number]:
                seen.wrong.append(f"{number} expired and was given to the function")
            seen.ended_before.add(number)
    except hr.ResponseTimeout:
        seen.told["timed_out"] += 1
    except hr.Closed:
        seen.told["closed"] += 1
    except (ValueError, hr.BatchFailed, hr.WrongResultCount, hr.WorkerLost):
        seen.told["failed"] += 1


class Round:
    """One batcher with random settings, from its start to its end."""

    def __init__(self, draw):
        self.draw, self.seen = draw, Seen()
        size = draw.choice([1, 2, 7, 32])
        self.seen.isolates = draw.random() < 0.3
        self.settings = {
            "max_batch_size": size,
            "workers": draw.choice([1, 1, 3]),
            "max_latency": draw.choice([0, 0, 0.002]),
            "linger": draw.choice([0, 0, 0.001]),
            "priorities": 3,
            "aging": draw.choice([None, 0.001]),
            "queue_capacity": draw.choice([size, 64, 512]) if size < 64 else None,
            "max_in_flight_per_client": draw.choice([None, 3]),
            "max_cost": draw.choice([None, 40]),
            "padded_cost": draw.random() < 0.5,
            "isolate_failures": self.seen.isolates,
            "timeout": draw.choice([None, 0.02, 60]),
            "response_timeout": draw.choice([None, 0.005]),
        }
        self.kind = draw.choice(["task", "thread"])
        self.batcher = hr.Batcher(self._task if self.kind == "task" else self._thread, **self.settings)
        self.number = 0
        self.waits = []
        self.function_draw = random.Random(draw.random())

    async def _task(self, batch):
        self.seen.note_batch(batch, self.settings["max_batch_size"])
        if self.function_draw.random() < 0.2:
            await asyncio.sleep(self.function_draw.random() * 0.01)
        return answers(batch, self.function_draw)

    def _thread(self, batch):
        self.seen.note_batch(batch, self.settings["max_batch_size"])
        if self.function_draw.random() < 0.2:
            time.sleep(self.function_draw.random() * 0.01)
        return answers(batch, self.function_draw)

    def terms(self):
        draw = self.draw
        return {
            name: value()
            for name, value in {
                "client": lambda: draw.randrange(4),
                "key": lambda: draw.randrange(3),
                "cost": lambda: draw.choice([0, 1, 5, 30, 50]),
                "priority": lambda: draw.randrange(4),
                "timeout": lambda: draw.choice([None, 0.001, 0.01, 5]),
                "deadline": lambda: time.monotonic() + draw.choice([-1, 0.001, 5]),
                "response_timeout": lambda: draw.choice([None, 0.001, 5]),
            }.items()
            if draw.random() < 0.2
        }

    def submit(self):
        number = self.number
        self.number += 1
        try:
            wait = self.batcher.submit(number, **self.terms())
        except hr.Rejected:
            self.seen.told["rejected"] += 1
        except hr.Closed:
            self.seen.told["refused as closed"] += 1
        else:
            self.waits.append(asyncio.ensure_future(told(self.seen, number, wait)))

    def cancel(self):
        if self.waits:
            self.draw.choice(self.waits[-64:]).cancel()

    async def run(self, operations):
        draw, batcher = self.draw, self.batcher
        for _ in range(operations):
            kind = draw.random()
            if kind < 0.75:
                self.submit()
            elif kind < 0.85:
                self.cancel()
            elif kind < 0.93:
                await asyncio.sleep(0)
            elif kind < 0.95:
                await asyncio.sleep(draw.random() * 0.003)
            else:
                draw.choice([batcher.pause, batcher.resume, batcher.resume, batcher.flush, self.change])()
        batcher.resume()
        if draw.random() < 0.5:
            assert await batcher.drain(GUARD)
        else:
            assert await batcher.aclose(GUARD)
        self.submit()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.gather(*self.waits, return_exceptions=True), GUARD)
        await eventually(lambda: is_quiet(batcher))
        self.check()

    def change(self):
        self.batcher.configure(
            max_latency=self.draw.choice([0, 0.001]), response_timeout=self.draw.choice([None, 0.002])
        )

    def check(self):
        stats, seen = self.batcher.stats(), self.seen
        assert seen.wrong == [], seen.wrong
        assert stats.is_conserved, stats
        # A task that is cancelled before its first step never waited: its item ended as it did.
        never_waited = sum(wait.cancelled() for wait in self.waits)
        ended = {name: getattr(stats, name) for name in ("completed", "failed", "expired", "timed_out")}
        assert stats.submitted == self.number
        assert stats.items_rejected == seen.told["rejected"] + seen.told["refused as closed"]
        for name, count in ended.items():
            assert seen.told[name] <= count <= seen.told[name] + never_waited + seen.told["cancelled"], name
        assert sum(seen.told.values()) + never_waited == self.number


async def rounds(operations, each):
    draw = random.Random(SEED)
    print(f"HEADRACE_SEED={SEED}")
    for _ in range(operations // each):
        await Round(draw).run(each)


@pytest.mark.parametrize(
    ("operations", "each"), [(20_000, 500), pytest.param(1_000_000, 5_000, marks=pytest.mark.soak)]
)
async def test_random_operations_end_every_item_exactly_once(operations, each):
    await rounds(operations, each)
