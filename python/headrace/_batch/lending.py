"""Streams of a pool for batches: each batch in flight is lent one, and nobody is told of its results before
the stream has come to their end.

A stream is borrowed before a batch is taken, so that items that wait for a stream stay in the queue, where
they can still be joined by others, expire and be cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Protocol

from headrace import errors
from headrace._headrace import BatchQueue, BatchTaken

EVERY = 1 << 30
"""More items than can wait."""

_PATIENCE = 1.0
"""Seconds after which a thread that waits for a stream looks whether it is still wanted."""


class LentStream(Protocol):
    """What a batch is lent, as far as batching is concerned."""

    def __await__(self) -> Generator[object, None, object]: ...
    def synchronize(self) -> None: ...
    def release(self) -> None: ...


class Streams(Protocol):
    """What lends."""

    def lease(self, *, timeout: float | None = None) -> Awaitable[LentStream]: ...
    def lease_blocking(self, *, timeout: float | None = None) -> LentStream: ...
    @property
    def max_streams(self) -> int: ...


class Dispatcher:
    """Takes batches on the loop, each with a stream.

    Args:
        streams: the pool.
        queue: the batcher's.
        workers: batches that run at once.
        begin: begins to run a batch with its stream; its end is told with :meth:`free`.
    """

    def __init__(
        self,
        streams: Streams,
        queue: BatchQueue,
        workers: int,
        begin: Callable[[BatchTaken, LentStream], None],
    ) -> None:
        self._streams = streams
        self._queue = queue
        self._begin = begin
        self._free = set(range(workers))
        self._spare = workers
        self._freed = asyncio.Event()
        self.failure: BaseException | None = None

    def free(self, number: int) -> None:
        """A worker has ended its batch."""
        self._free.add(number)
        self._freed.set()

    def lost(self) -> None:
        """A worker was given up: another one takes its place, under a new number."""
        self._free.add(self._spare)
        self._spare += 1
        self._freed.set()

    async def run(self) -> None:
        """Dispatch until the queue is closed and empty."""
        while True:
            while not self._free:
                self._freed.clear()
                await self._freed.wait()
            if not await self._queue.takable():
                return
            await self._dispatch()

    async def _dispatch(self) -> None:
        try:
            stream = await self._streams.lease()
        except errors.CudaError as error:
            # Nothing can run any more; whoever waits is told why.
            self._fail(error)
            return
        number = min(self._free)
        # It may have been taken back, or have expired, meanwhile.
        taken = self._queue.try_take(number, EVERY)
        if taken is None:
            stream.release()
        elif self.failure is not None:
            stream.release()
            taken.fail(self.failure)
        else:
            self._free.discard(number)
            self._begin(taken, stream)

    def _fail(self, error: BaseException) -> None:
        if (taken := self._queue.try_take(min(self._free), EVERY)) is not None:
            taken.fail(error)


def take_lent(
    streams: Streams, queue: BatchQueue, number: int, wanted: Callable[[], bool]
) -> tuple[BatchTaken, LentStream] | None:
    """The next batch for a thread, and its stream.

    Args:
        streams: the pool.
        queue: the batcher's.
        number: the worker's.
        wanted: whether the thread is still to take batches.

    Returns:
        ``None`` when there will be no batch any more, or the thread is not wanted.
    """
    while wanted() and queue.wait_takable():
        try:
            stream = streams.lease_blocking(timeout=_PATIENCE)
        except errors.LeaseTimeout:
            continue
        except errors.CudaError as error:
            if (taken := queue.try_take(number, EVERY)) is not None:
                taken.fail(error)
            continue
        if (taken := queue.try_take(number, EVERY)) is not None:
            return taken, stream
        stream.release()
    return None
