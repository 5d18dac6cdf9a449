"""The hand-written arm: what a good asyncio program does by itself, in forty lines.

One plan for the end of the turn collects what that turn submitted; one task for each batch; a future for each
item. An item that nobody waits for any more is left out. It has no bound, no deadline and no close.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from batching_arms import BATCH_SIZE, Function, Settings

LATE = (TimeoutError,)


class EagerBatcher:
    """Runs what there is as soon as the function is free."""

    def __init__(self, function: Any) -> None:
        """Batch for a coroutine function, on the running loop."""
        self._function = function
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        self._is_busy = False
        self._task: asyncio.Task[None] | None = None

    def submit(self, item: Any) -> asyncio.Future[Any]:
        """Return a future of the item's answer."""
        answer = self._loop.create_future()
        self._waiting.append((item, answer))
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_soon(self._run_next)
        return answer

    async def map(self, items: Sequence[Any]) -> list[Any]:
        """Return the answers of many items."""
        return [await answer for answer in [self.submit(item) for item in items]]

    def _run_next(self) -> None:
        batch: list[tuple[Any, asyncio.Future[Any]]] = []
        while self._waiting and len(batch) < BATCH_SIZE:
            one = self._waiting.popleft()
            if not one[1].done():
                batch.append(one)
        self._is_busy = bool(batch)
        if batch:
            self._task = self._loop.create_task(self._run(batch))

    async def _run(self, batch: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        try:
            results = await self._function([item for item, _ in batch])
            for (_, answer), result in zip(batch, results, strict=True):
                if not answer.done():
                    answer.set_result(result)
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
        self._run_next()


class _WithTimeout:
    """The same, for callers that each wait for so long and no longer."""

    def __init__(self, batcher: EagerBatcher, timeout_s: float) -> None:
        self._batcher = batcher
        self._timeout_s = timeout_s

    async def submit(self, item: Any) -> Any:
        async with asyncio.timeout(self._timeout_s):
            return await self._batcher.submit(item)


@asynccontextmanager
async def open(function: Function, settings: Settings) -> AsyncIterator[Any]:
    """Batch for a function, a plain one on a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        loop = asyncio.get_running_loop()

        async def on_thread(items: list[Any]) -> list[Any]:
            return await loop.run_in_executor(thread, function.call, items)

        batcher = EagerBatcher(function.call if function.is_async else on_thread)
        yield batcher if settings.timeout_s is None else _WithTimeout(batcher, settings.timeout_s)
