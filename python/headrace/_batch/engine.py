"""A batcher as an engine: what several routers ask for at the same time shares batches.

The client of an item is the router that asks, its time is what the caller has left, and a caller that leaves
cancels its item. A request that the batcher has no room for is refused like one that the worker has no room
for: its router takes it elsewhere, or its caller is told ``Overloaded``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

from headrace import errors
from headrace._headrace import Context, Sink, StreamPool
from headrace.batcher import Batcher


class BatchEngine:
    """Serves a batcher, which it starts before requests come, and stops if it has started it.

    Args:
        batcher: the batcher.
    """

    def __init__(self, batcher: Batcher[Any, Any]) -> None:
        self._batcher = batcher
        self._is_ours = False
        self._watching: asyncio.Task[None] | None = None
        self.streams = batcher.streams
        self.generate = self._stream if batcher.streams else self._submit

    async def start(self) -> None:
        """Start the batcher, if nobody has.

        Raises:
            StartupError: it did not start.
        """
        self._is_ours = not self._batcher.started
        await self._batcher.start()

    def watch(self, declare_unready: Callable[[str], None]) -> None:
        """Have the worker told when nothing that the batcher runs can work any more: its device is lost.

        Args:
            declare_unready: called with the reason.
        """
        pool = self._batcher.stream_pool
        if pool is not None:
            self._watching = asyncio.get_running_loop().create_task(_tell_lost(pool, declare_unready))

    async def stop(self) -> None:
        """Stop the batcher: no request needs it any more."""
        if self._watching is not None:
            self._watching.cancel()
        if self._is_ours:
            await self._batcher.aclose()

    def answer(self, request: Any, sink: Sink, failed: Callable[[Sink, BaseException], None]) -> None:
        """Begin to answer a request, unless the batcher streams. The item's answer is sent when it is there;
        there is no task in between.

        Args:
            request: the item.
            sink: the request's.
            failed: called with the sink and what there is instead of an answer.
        """
        try:
            self._batcher.answer(request, sink, failed, **self._terms(sink.context()))
        except errors.BatchError as error:
            failed(sink, refusal_of(error))
        except Exception as error:
            failed(sink, error)

    async def _submit(self, request: Any, ctx: Context) -> Any:
        try:
            submission = self._batcher.submit(request, **self._terms(ctx))
        except errors.BatchError as error:
            raise refusal_of(error) from None
        return await submission

    async def _stream(self, request: Any, ctx: Context) -> AsyncIterator[Any]:
        # Before there is a stream, so that a refused request may go elsewhere.
        try:
            stream = self._batcher.stream(request, **self._terms(ctx))
        except errors.BatchError as error:
            raise refusal_of(error) from None
        return _items(stream)

    def _terms(self, ctx: Context) -> Any:
        terms: dict[str, Any] = {"client": ctx.client_id}
        left, bound = ctx.remaining(), self._batcher.timeout
        if left is not None and (bound is None or left < bound):
            terms["timeout"] = left
        return terms


async def _tell_lost(pool: StreamPool, declare_unready: Callable[[str], None]) -> None:
    declare_unready(str(await pool.wait_lost()))


async def _items(stream: Any) -> AsyncIterator[Any]:
    async with stream:
        async for item in stream:
            yield item


class Refusal(Exception):
    """The request was not admitted, and nothing has been done for it: it may go elsewhere.

    Args:
        message: why.
        retry_after: seconds after which to try again, if that is known.
    """

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after_ms = 0 if retry_after is None else math.ceil(retry_after * 1000)


_PASSING = frozenset({"queue_full", "queue_cost", "client_cap", "would_expire"})
"""Reasons that another worker may not share, or that pass with time."""


def refusal_of(error: errors.BatchError) -> Exception:
    """What to tell whose request was not admitted: to go elsewhere or come back, if that helps."""
    if isinstance(error, errors.Rejected) and error.reason in _PASSING:
        return Refusal(str(error), error.retry_after)
    if isinstance(error, errors.Closed):
        return Refusal(str(error), None)
    return error
