"""A batcher as an engine: what several routers ask for at the same time shares batches.

The client of an item is the router that asks, its time is what the caller has left, and a caller that leaves
cancels its item.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from headrace._headrace import Context, Sink
from headrace.batcher import Batcher


class BatchEngine:
    """Serves a batcher, which it starts before requests come, and stops if it has started it.

    Args:
        batcher: the batcher.
    """

    def __init__(self, batcher: Batcher[Any, Any]) -> None:
        self._batcher = batcher
        self._is_ours = False
        self.streams = batcher.streams
        self.generate = self._stream if batcher.streams else self._submit

    async def start(self) -> None:
        """Start the batcher, if nobody has.

        Raises:
            StartupError: it did not start.
        """
        self._is_ours = not self._batcher.started
        await self._batcher.start()

    async def stop(self) -> None:
        """Stop the batcher: no request needs it any more."""
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
        except Exception as error:
            failed(sink, error)

    async def _submit(self, request: Any, ctx: Context) -> Any:
        return await self._batcher.submit(request, **self._terms(ctx))

    async def _stream(self, request: Any, ctx: Context) -> AsyncIterator[Any]:
        stream: Any = self._batcher.stream(request, **self._terms(ctx))
        async with stream:
            async for item in stream:
                yield item

    def _terms(self, ctx: Context) -> Any:
        terms: dict[str, Any] = {"client": ctx.client_id}
        left, bound = ctx.remaining(), self._batcher.timeout
        if left is not None and (bound is None or left < bound):
            terms["timeout"] = left
        return terms
