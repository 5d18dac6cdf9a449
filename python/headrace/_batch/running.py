"""A batcher from its start to its end: its queue, its workers, and what is told when they cannot start. It
knows no batcher, so that one that nobody holds goes, and its queue with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

from headrace import errors
from headrace._batch.doors import Doors, weakly
from headrace._batch.functions import Work
from headrace._batch.lending import Streams
from headrace._batch.tasks import Tasks
from headrace._batch.threads import Threads
from headrace._headrace import BatchQueue, BatchSettings
from headrace._loop import current_hub

_GRACE = 1.0
"""Seconds that ``on_stop`` has after a function that did not return in time."""


class Running:
    """A batcher that has been started, on the running loop.

    Args:
        work: what it runs.
        settings: the settings, checked.
        values: the settings by name.
        key: finds an item's key.
        cost: finds an item's cost.
        doors: where submits come in.
        streams: what lends each batch a stream, if anything does.
        is_paused: whether it begins paused.

    Raises:
        RuntimeError: no loop is running.
        ForkError: this process was forked after Headrace had started.
    """

    def __init__(
        self,
        work: Work,
        settings: BatchSettings,
        values: dict[str, Any],
        key: Callable[[Any], Hashable] | None,
        cost: Callable[[Any], int] | None,
        doors: Doors,
        streams: Streams | None,
        *,
        is_paused: bool,
    ) -> None:
        hub = current_hub()
        self.name: str = values["name"]
        self._workers: int = values["workers"]
        self._startup_timeout: float = values["startup_timeout"]
        self._doors = doors
        self._is_paused = is_paused
        self._starting: asyncio.Task[None] | None = None
        self._breaking: asyncio.Task[None] | None = None
        self._failure: errors.BatchError | None = None
        if work.on_loop:
            self.crew: Tasks | Threads = Tasks(work, self.name, self._workers, streams)
        else:
            self.crew = Threads(work, self.name, self._workers, weakly(self._broken), streams)
        begin = self.crew.on_batch()
        on_batch = None if begin is None else weakly(begin)
        self.queue = BatchQueue.start(hub, settings, key, cost, on_batch, weakly(self.crew.on_lost))
        self._watch(values)
        if self.crew.attach(self.queue):
            self.queue.pause()
            self._starting = asyncio.get_running_loop().create_task(self._start())
        elif is_paused:
            self.queue.pause()
        doors.open(self.queue)

    def check(self) -> None:
        """Raise what it did not start for."""
        if self._failure is not None:
            raise _again(self._failure)

    async def started(self) -> None:
        """Wait until the workers have started; raises why they have not."""
        if self._starting is not None:
            # Others rely on the start when one who waits for it is cancelled.
            await asyncio.shield(self._starting)
        self.check()

    async def _start(self) -> None:
        """Start the workers. How that ended is kept rather than raised: perhaps nobody waits for it."""
        try:
            await self.crew.start(self._startup_timeout)
        except errors.StartupError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            await self._fail(errors.Closed(f"the batcher {self.name!r} was closed while it started"))
        else:
            self._starting = None
            if not self._is_paused:
                self.queue.resume()

    async def _fail(self, failure: errors.BatchError) -> None:
        """Nobody can run anything: whoever waits is told, and whoever comes."""
        self._failure = failure
        self._doors.shut()
        self.queue.begin_drain()
        self.crew.fail_all(failure)
        await self.queue.wait_quiet()
        self.queue.close()
        self._starting = None

    def _broken(self, failure: errors.StartupError) -> None:
        """The last worker was lost, and no other could be started."""
        self._breaking = asyncio.get_running_loop().create_task(self._fail(failure))

    def _watch(self, values: dict[str, Any]) -> None:
        self.crew.isolate = values["isolate_failures"]
        self.crew.watched = values["callback_timeout"] is not None

    def configure(self, settings: BatchSettings, values: dict[str, Any]) -> None:
        """Change the settings."""
        self.queue.configure(settings)
        self._watch(values)

    def pause(self) -> None:
        """Hand out nothing."""
        self._is_paused = True
        self.queue.pause()

    def resume(self) -> None:
        """Hand out batches again, or as soon as the workers have started."""
        self._is_paused = False
        if self._starting is None:
            self.queue.resume()

    async def end(self, timeout: float | None, *, drain: bool) -> bool:
        """See ``Batcher.drain`` and ``Batcher.aclose``."""
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        queue = self.queue
        if not drain:
            queue.close()
        if self._starting is not None:
            if not drain:
                self._starting.cancel()
            await asyncio.wait([self._starting], timeout=timeout)
        if drain:
            queue.begin_drain()
        quiet = await _within(queue.wait_quiet(), until)
        queue.close()
        if not quiet:
            # Tasks that were given up keep their numbers until they end.
            for number in range(self._workers + queue.stats()["workers_lost"]):
                queue.lose(number)
            until = loop.time() + _GRACE
        stopped = await _within(self.crew.stop(abandon=not quiet), until)
        if not stopped:
            await self.crew.stop(abandon=True)
        return quiet and stopped


def _again(error: errors.BatchError) -> errors.BatchError:
    """An instance for one more caller: a traceback is one caller's."""
    again = type(error)(str(error))
    vars(again).update(vars(error))
    again.__cause__ = error.__cause__
    return again


async def _within(awaitable: Awaitable[object], until: float | None) -> bool:
    """Whether it was done before this time of the loop."""
    limit = asyncio.timeout_at(until)
    try:
        async with limit:
            await awaitable
    except TimeoutError:
        if not limit.expired():
            raise
        return False
    return True
