"""The arm of `batched` (Mixedbread): `aio.dynamically`, its defaults but for a window that is asked for.

Its window is a sleep before each batch that is not full, 5 ms by default. It has no bound and no deadline.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from batched.aio import AsyncBatchProcessor

from batching_arms import BATCH_SIZE, Function, Settings

LATE = (TimeoutError,)


class _Batched:
    """Its one verb takes an item, or a list of items."""

    def __init__(self, processor: Any) -> None:
        self.submit = self.map = processor


@asynccontextmanager
async def open(function: Function, settings: Settings) -> AsyncIterator[Any]:
    """Batch for a function; its own loop goes when its processor is dropped."""
    window = {"timeout_ms": settings.window_s * 1e3} if settings.window_s else {}
    yield _Batched(AsyncBatchProcessor(function.call, batch_size=BATCH_SIZE, **window))
