"""The Headrace arm: `headrace.Batcher`, called as its documentation says."""

from contextlib import AbstractAsyncContextManager
from typing import Any

import headrace

from batching_arms import BATCH_SIZE, Function, Settings

LATE = (headrace.Expired, headrace.Rejected, headrace.ResponseTimeout)


def open(function: Function, settings: Settings) -> AbstractAsyncContextManager[Any]:
    """Batch for a function."""
    timeout = {} if settings.timeout_s is None else {"timeout": settings.timeout_s}
    return headrace.Batcher(
        function.call,
        max_batch_size=BATCH_SIZE,
        max_latency=settings.window_s,
        queue_capacity=settings.capacity,
        **timeout,
        **settings.options,
    )
