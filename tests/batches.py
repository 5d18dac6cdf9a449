"""What tests of batchers share: functions that are held until the test lets them go, and what holds of every
batcher at a quiet point.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import headrace as hr

from support import GUARD, eventually


class Held:
    """A function that notes its batches, and answers when it is let go: on the loop, or on a thread.

    Args:
        kind: ``"task"`` or ``"thread"``.
        answer: what it answers for a batch; by default each number's double.
    """

    def __init__(self, kind: str, answer: Any = None) -> None:
        self.kind = kind
        self.batches: list[list[Any]] = []
        self.threads: list[str] = []
        self.returned = 0
        self.answer = answer or (lambda batch: [item * 2 for item in batch])
        self._thread_gate, self._task_gate = threading.Event(), asyncio.Event()

    @property
    def function(self) -> Any:
        return self._in_task if self.kind == "task" else self._in_thread

    def open(self) -> None:
        self._thread_gate.set()
        self._task_gate.set()

    def shut(self) -> None:
        self._thread_gate.clear()
        self._task_gate.clear()

    async def entered(self, batches: int = 1) -> None:
        await eventually(lambda: len(self.batches) >= batches)

    def _note(self, batch: Any) -> None:
        self.batches.append(list(batch))
        self.threads.append(threading.current_thread().name)

    async def _in_task(self, batch: Any) -> Any:
        self._note(batch)
        try:
            await self._task_gate.wait()
            return self.answer(batch)
        finally:
            self.returned += 1

    def _in_thread(self, batch: Any) -> Any:
        self._note(batch)
        assert self._thread_gate.wait(GUARD), "never let go"
        self.returned += 1
        return self.answer(batch)


KINDS = ("task", "thread")


def double(batch: list[int]) -> list[int]:
    return [number * 2 for number in batch]


async def double_async(batch: list[int]) -> list[int]:
    return [number * 2 for number in batch]


DOUBLES = {"task": double_async, "thread": double}


def is_quiet(batcher: hr.Batcher[Any, Any]) -> bool:
    stats = batcher.stats()
    return not (stats.queued or stats.dispatched or stats.abandoned or stats.in_flight or stats.queued_cost)


@contextlib.asynccontextmanager
async def batching(function: Any, **settings: Any) -> AsyncIterator[hr.Batcher[Any, Any]]:
    """A batcher. A test that passes leaves nothing in it, and every item accounted for."""
    async with hr.Batcher(function, **settings) as batcher:
        yield batcher
        await eventually(lambda: is_quiet(batcher))
        assert batcher.stats().is_conserved, batcher.stats()


async def gathered(*awaitables: Any) -> list[Any]:
    """What became of each, exceptions included."""
    return await asyncio.wait_for(asyncio.gather(*awaitables, return_exceptions=True), GUARD)


async def collected(stream: Any) -> list[Any]:
    return [item async for item in stream]
