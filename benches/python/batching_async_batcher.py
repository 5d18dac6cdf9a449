"""The arm of `async-batcher`: a subclass, as its documentation says, with one batch at a time.

`max_queue_time` is 0 unless a window is asked for: what waits is then taken at once, the best that it can do
here. It has no deadlines and no `map`; many items are gathered.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from async_batcher.batcher import AsyncBatcher

from batching_arms import BATCH_SIZE, Function, Settings

LATE = (TimeoutError,)


class _OnLoop(AsyncBatcher[Any, Any]):
    """Runs batches on the loop."""

    function: Any

    async def process_batch(self, batch: list[Any]) -> list[Any]:
        return await self.function(batch)


class _OnThread(AsyncBatcher[Any, Any]):
    """Runs batches on a thread."""

    function: Any

    def process_batch(self, batch: list[Any]) -> list[Any]:
        return self.function(batch)


class _Verbs:
    """What loads call."""

    def __init__(self, batcher: AsyncBatcher[Any, Any]) -> None:
        self.submit = batcher.process

    async def map(self, items: Sequence[Any]) -> list[Any]:
        return await asyncio.gather(*map(self.submit, items))


@asynccontextmanager
async def open(function: Function, settings: Settings) -> AsyncIterator[Any]:
    """Batch for a function."""
    kind = _OnLoop if function.is_async else _OnThread
    with ThreadPoolExecutor(1) as thread:
        batcher = kind(max_batch_size=BATCH_SIZE, max_queue_time=settings.window_s, executor=thread)
        batcher.function = function.call
        yield _Verbs(batcher)
        await batcher.stop(force=True)
