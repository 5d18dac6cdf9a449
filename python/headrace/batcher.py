"""Batching: items that are submitted one at a time reach a function many at a time.

:class:`Batcher` is the queue's public face: settings, starting and ending. What a function is and who runs it
is under ``_batch``; every decision about items is native. A batcher belongs to the loop on which it starts.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, Unpack, overload

from headrace import errors
from headrace._batch.doors import Doors
from headrace._batch.figures import BatchStats
from headrace._batch.functions import Kind, work_of
from headrace._batch.running import Running
from headrace._batch.settings import BatchFunction, Changes, Settings, Terms
from headrace._headrace import BatchQueue, BatchSettings, Sink, StreamPool

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Collects items into batches for a function.

    Args:
        fn: what is run. It takes a :class:`Batch`, which is a list of items, and answers each in its place.

            - A coroutine function runs on the loop, up to ``workers`` batches at once.
            - A plain function runs on ``workers`` threads of its own, on which ``on_start``, ``warmup`` and
              ``on_stop`` run too.
            - A generator function, asynchronous or not, streams: each yield is a dictionary of slots and
              items, or a list with one entry for each slot, in which ``headrace.SKIP`` is no item and
              ``headrace.DONE`` the end of the slot's stream. Use :meth:`stream`.
            - An object or class with ``process``, or one that is called; ``on_start``, ``warmup`` and
              ``on_stop`` are its own if it has them. A class is made once for each thread, on that thread, or
              once on the loop.
            - A step engine, an object or class with ``add(list[tuple[Ticket, item]])``,
              ``step() -> list[tuple[Ticket, result, done]]``, ``remove(list[Ticket])`` and ``capacity()``,
              how many more requests it has room for now: requests join and leave between steps. Use
              :meth:`stream`.

            An ``Exception`` as a result fails that item alone.
        max_batch_size: most items of a batch, 1 to 65,536.
        max_latency: seconds that the oldest item of a batch that is not full waits for others, from its
            submission on. 0: a free worker takes what is there at the end of the loop's turn.
        linger: seconds of quiet after which a batch that is not full is closed, at the latest after ten times
            this or ``max_latency``. 0: none.
        max_cost: most cost of a batch.
        cost: an item's cost, a whole number; 1 without it.
        padded_cost: a batch costs its largest item's cost times its size, as padded tensors do.
        key: only items of one key share a batch.
        allowed_sizes: sizes that the function likes, rising up to ``max_batch_size``: see :meth:`Batch.pad`.
        workers: batches that run at once, 1 to 1,024. ``None`` for 1, or with ``streams`` for as many as
            there are streams.
        streams: a :class:`headrace.cuda.StreamPool`. Each batch in flight has one of its streams to itself,
            as ``batch.stream``, and is taken only when there is one; its answers are told when the stream has
            come to the end of what the function put into it. Not for functions that stream, nor step engines.
        queue_capacity: items that may wait; beyond it a submit is refused. ``None`` for four batches for each
            worker, at least 64.
        queue_cost: cost that may wait.
        max_in_flight_per_client: items of one client that may wait or run.
        timeout: seconds for a submit as a whole.
        response_timeout: seconds for the function, from dispatch on.
        predictive_expiry: expire early what would miss its deadline while others wait that can make theirs,
            and refuse at once (``would_expire``) what would miss its own behind what waits. The time of past
            batches tells; nothing is predicted before ten. Not refused are items with a key, those of a
            :meth:`map`, and those of step engines.
        priorities: levels of priority, 1 to 64.
        aging: seconds of waiting that make up for one level of priority. ``None``: priorities are strict.
        isolate_failures: a batch for which the function raises is halved and run again, until the items that
            make it fail are alone.
        on_start: called where the function runs, before everything else.
        on_stop: called where the function runs, when there is nothing more to do.
        warmup: called after ``on_start``; a first run of the model, for example.
        startup_timeout: seconds for both.
        callback_timeout: seconds after which a function that has not answered its batch is given up: the
            batch fails and the worker is replaced. A generator counts as a whole, an engine each step.
        name: of threads and in messages. ``None`` for the function's.

    Raises:
        ValueError: a setting is out of range; the message names it.
        TypeError: the function is none, or does not take a batch.

    Example:
        >>> import asyncio
        >>> async def main():
        ...     async with Batcher(lambda numbers: [number * 2 for number in numbers]) as double:
        ...         return await asyncio.gather(double.submit(1), double.submit(2))
        >>> asyncio.run(main())
        [2, 4]

    It starts when it is entered, with :meth:`start`, or at the first submit. Leaving ``async with`` drains;
    an exception inside it closes at once. One that is dropped closes; threads hold their function, so close
    one whose plain function holds it.
    """

    def __init__(
        self,
        fn: BatchFunction[T, R],
        *,
        max_batch_size: int = 32,
        max_latency: float = 0.0,
        linger: float = 0.0,
        max_cost: int | None = None,
        cost: Callable[[T], int] | None = None,
        padded_cost: bool = False,
        key: Callable[[T], Hashable] | None = None,
        allowed_sizes: Sequence[int] | None = None,
        workers: int | None = None,
        streams: StreamPool | None = None,
        queue_capacity: int | None = None,
        queue_cost: int | None = None,
        max_in_flight_per_client: int | None = None,
        timeout: float | None = 60.0,
        response_timeout: float | None = None,
        predictive_expiry: bool = True,
        priorities: int = 1,
        aging: float | None = None,
        isolate_failures: bool = False,
        on_start: Callable[[], object] | None = None,
        on_stop: Callable[[], object] | None = None,
        warmup: Callable[[], object] | None = None,
        startup_timeout: float = 30.0,
        callback_timeout: float | None = None,
        name: str | None = None,
    ) -> None:
        self._running: Running | None = None
        work = work_of(fn, on_start, warmup, on_stop)
        if streams is not None and work.kind is not Kind.FUNCTION:
            raise ValueError(
                f"streams must be None for {work.kind.value}: its items are told before a stream drains"
            )
        if workers is None:
            workers = 1 if streams is None else streams.max_streams
        self._pool = streams
        for setting, function in (("key", key), ("cost", cost)):
            if function is not None and not callable(function):
                raise TypeError(f"{setting} must be a function of an item, not {function!r}")
        self._values: dict[str, Any] = {
            "max_batch_size": max_batch_size,
            "max_latency": max_latency,
            "linger": linger,
            "max_cost": max_cost,
            "padded_cost": padded_cost,
            "allowed_sizes": allowed_sizes,
            "workers": workers,
            "queue_capacity": queue_capacity,
            "queue_cost": queue_cost,
            "max_in_flight_per_client": max_in_flight_per_client,
            "timeout": timeout,
            "response_timeout": response_timeout,
            "predictive_expiry": predictive_expiry,
            "priorities": priorities,
            "aging": aging,
            "isolate_failures": isolate_failures,
            "startup_timeout": startup_timeout,
            "callback_timeout": callback_timeout,
            "name": work.name if name is None else name,
        }
        self._work = work
        self._settings = self._checked(self._values)
        if work.kind is Kind.STEPS and workers > 1 and not work.is_class:
            raise ValueError(
                "workers must be 1 for a step engine that is an object; give its class, of which each worker "
                "makes its own"
            )
        self._key, self._cost = key, cost
        self._is_closed = False
        self._is_paused = False

    def _checked(self, values: dict[str, Any]) -> BatchSettings:
        if values["isolate_failures"] and self._work.kind is not Kind.FUNCTION:
            raise ValueError(f"isolate_failures must be False for {self._work.kind.value}: its items are out")
        sizes: Any = list(values["allowed_sizes"] or ())
        return BatchSettings(**{**values, "allowed_sizes": sizes})

    @property
    def name(self) -> str:
        """What threads and messages call it."""
        return self._values["name"]

    @property
    def timeout(self) -> float | None:
        """Seconds for a submit as a whole, unless it says otherwise."""
        return self._values["timeout"]

    @property
    def streams(self) -> bool:
        """Whether it is for :meth:`stream`, not for :meth:`submit`."""
        return self._work.kind is not Kind.FUNCTION

    @property
    def stream_pool(self) -> StreamPool | None:
        """What lends its batches streams, if anything does."""
        return self._pool

    @property
    def started(self) -> bool:
        """Whether it has been started; also true when it has been closed since."""
        return self._running is not None

    # Submitting. Once it has started, the queue's own methods take the place of the first three: a submit
    # then costs no frame of Python.

    def submit(self, item: T, **terms: Unpack[Terms]) -> Awaitable[R]:
        """Submit an item. It is admitted or refused in this call; await what is returned for the answer.

        Cancelling whoever awaits cancels the item: it leaves the queue, or its answer is ignored. So does
        letting go of what is returned before it is answered; hold it for as long as the item shall run. (A
        task that was cancelled before its first step holds it until it is awaited or dropped itself.) It also
        has ``cancel()`` and ``done()``; it is no coroutine, so use :func:`asyncio.gather` or
        :func:`asyncio.ensure_future` on it rather than ``create_task``.

        Args:
            item: the item.
            terms: see :class:`Terms`.

        Raises:
            Rejected: it was not admitted; ``reason`` says why.
            Closed: the batcher is closed.
            StartupError: the batcher did not start.
            TypeError: the function streams: use :meth:`stream`.
            RuntimeError: this is not the batcher's loop; or its own function submits, and no other worker is
                free that could ever run the item.

        Awaiting raises :class:`Expired`, :class:`ResponseTimeout`, :class:`BatchFailed`,
        :class:`WrongResultCount`, :class:`WorkerLost` or :class:`Closed`, or the exception that the function
        returned in the item's slot.
        """
        return self._ready("submit").queue.submit(item, **terms)

    def submit_nowait(self, item: T, **terms: Unpack[Terms]) -> Awaitable[R]:
        """As :meth:`submit`, for code that relies on being refused before anything is awaited."""
        return self._ready("submit").queue.submit(item, **terms)

    @overload
    def map(
        self, items: Iterable[T], *, return_exceptions: Literal[False] = False, **terms: Unpack[Terms]
    ) -> Awaitable[list[R]]: ...
    @overload
    def map(
        self, items: Iterable[T], *, return_exceptions: Literal[True], **terms: Unpack[Terms]
    ) -> Awaitable[list[R | Exception]]: ...
    def map(
        self, items: Iterable[T], *, return_exceptions: bool = False, **terms: Unpack[Terms]
    ) -> Awaitable[Any]:
        """Submit many items, as the queue has room; await the list of answers, in the order of the items.

        It is never refused for its size. A time-out counts for each item from when it is submitted. When the
        batcher closes meanwhile, no more are taken from `items`, and ``Closed`` is raised in any case.
        Cancelling whoever awaits, or letting go of what is returned, cancels the items that have no answer.

        Args:
            items: the items; they are taken from it as room frees.
            return_exceptions: whether errors are returned in the items' places. Otherwise the first one, in
                their order, is raised when all have ended.
            terms: see :class:`Terms`; the same for each.

        Raises:
            The same as :meth:`submit`, but for refusals, which are the item's.
        """
        return self._ready("map").queue.map(items, return_exceptions=return_exceptions, **terms)

    def stream(self, item: T, **terms: Unpack[Terms]) -> AsyncIterator[R]:
        """Submit an item to a streaming function or a step engine, and iterate over what it yields for it.

        Closing the iterator (``aclose``, ``async with``), dropping it or cancelling whoever waits for it
        cancels the item.
        It is admitted or refused in this call. Up to 65,536 items may lie unread; beyond that it ends with
        ``SlowConsumer``.

        Args:
            item: the item.
            terms: see :class:`Terms`.

        Raises:
            TypeError: the function returns results: use :meth:`submit`.
            The same as :meth:`submit` otherwise.
        """
        return self._ready("stream").queue.stream(item, **terms)

    def submit_sync(self, item: T, **terms: Unpack[Terms]) -> R:
        """Submit an item from another thread, and block until it is answered. The interpreter is free
        meanwhile.

        Args:
            item: the item.
            terms: see :class:`Terms`.

        Raises:
            RuntimeError: the batcher has not started; or this is its loop's thread, or one of its workers',
                where it would wait for itself.
            The same as :meth:`submit` otherwise.
        """
        if self._running is None and not self._is_closed:
            raise RuntimeError(
                f"the batcher {self.name!r} has not started; enter it, or call start, on its event loop first"
            )
        running = self._ready("submit")
        if running.crew.inside():
            raise RuntimeError(
                f"submit_sync in a function of the batcher {self.name!r} would wait for its own thread; call "
                "the function directly"
            )
        return running.queue.submit_sync(item, **terms)

    def answer(
        self, request: T, sink: Sink, failed: Callable[[Sink, BaseException], None], **terms: Unpack[Terms]
    ) -> None:
        """Submit the request of a worker's caller, which the item's answer answers. For :func:`serve`."""
        self._ready("submit").queue.serve(request, sink, failed, **terms)

    def _ready(self, method: str) -> Running:
        """What runs, started if need be."""
        if self.streams != (method == "stream"):
            use = "stream" if self.streams else "submit"
            raise TypeError(
                f"the batcher {self.name!r} runs {self._work.kind.value}: use {use}, not {method}"
            )
        running = self._begun()
        running.check()
        return running

    # Starting.

    async def start(self) -> Self:
        """Start on the running loop: ``on_start`` and ``warmup`` have run when this returns.

        Raises:
            StartupError: a worker did not start; the cause says why.
            StartupTimeout: they took longer than ``startup_timeout``.
            Closed: the batcher is closed.
        """
        await self._begun().started()
        return self

    def _begun(self) -> Running:
        running = self._running
        if running is None:
            if self._is_closed:
                raise errors.Closed(f"the batcher {self.name!r} is closed")
            doors = Doors(vars(self), streams=self.streams)
            running = self._running = Running(
                self._work,
                self._settings,
                self._values,
                self._key,
                self._cost,
                doors,
                self._pool,
                is_paused=self._is_paused,
            )
            weakref.finalize(self, _close_quietly, running.queue)
        return running

    # While it runs.

    def pause(self) -> None:
        """Hand out no batch until :meth:`resume`. Items are admitted, and expire. A drain goes on."""
        self._is_paused = True
        if self._running is not None:
            self._running.pause()

    def resume(self) -> None:
        """Hand out batches again."""
        self._is_paused = False
        if self._running is not None:
            self._running.resume()

    def flush(self) -> None:
        """Close the windows of what waits now (``max_latency``, ``linger``): it can be taken at once."""
        if self._running is not None:
            self._running.queue.flush()

    def configure(self, **changes: Unpack[Changes]) -> None:
        """Change settings, for what comes and for what waits. Deadlines that were given stay.

        Raises:
            ValueError: a setting is out of range, or cannot be changed; nothing has changed then.
            TypeError: there is no such setting.
        """
        for setting in changes:
            if setting not in Settings.__annotations__:
                raise TypeError(f"there is no setting {setting!r}")
            if setting not in Changes.__annotations__:
                raise ValueError(f"{setting} cannot be changed; make another batcher")
        values = {**self._values, **changes}
        settings = self._checked(values)
        if self._running is not None:
            self._running.configure(settings, values)
        self._values, self._settings = values, settings

    def stats(self) -> BatchStats:
        """A consistent snapshot of its counts."""
        if self._running is None:
            return BatchStats(max_batch_size=self._values["max_batch_size"])
        return BatchStats.of(self._running.queue.stats())

    # Ending.

    async def drain(self, timeout: float | None = None) -> bool:
        """Take nothing new, let what waits run, then stop.

        Args:
            timeout: seconds to wait, ``None`` for as long as it takes. After that what still waits is told
                ``Closed``, and what runs ``WorkerLost``.

        Returns:
            Whether everything has run and ``on_stop`` has returned.
        """
        return await self._end(timeout, drain=True)

    async def aclose(self, timeout: float | None = 10.0) -> bool:
        """Take nothing new and stop: what waits is told ``Closed``, batches that run finish.

        Args:
            timeout: seconds to wait for them and for ``on_stop``. Items of a function that has not returned
                then are told ``WorkerLost``; its task is cancelled, its thread left to itself.

        Returns:
            Whether they have finished.
        """
        return await self._end(timeout, drain=False)

    def close(self) -> None:
        """The beginning of :meth:`aclose`, from any thread: nothing is waited for."""
        self._is_closed = True
        if self._running is not None:
            self._running.queue.close()

    async def _end(self, timeout: float | None, *, drain: bool) -> bool:
        self._is_closed = True
        return self._running is None or await self._running.end(timeout, drain=drain)

    async def __aenter__(self) -> Self:
        try:
            return await self.start()
        except BaseException:
            self.close()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            await self.drain()
        else:
            await self.aclose()

    def __repr__(self) -> str:
        running = self._running
        state = "new" if running is None else "closed" if running.queue.closed else "open"
        return f"<headrace.Batcher {self.name!r}, {state}>"


@overload
def batched(fn: BatchFunction[T, R], /) -> Batcher[T, R]: ...
@overload
def batched(**settings: Unpack[Settings]) -> Callable[[BatchFunction[T, R]], Batcher[T, R]]: ...
def batched(fn: Any = None, /, **settings: Unpack[Settings]) -> Any:
    """Make a :class:`Batcher` of the function below: ``@batched`` or ``@batched(max_batch_size=8, ...)``.

    Args:
        fn: the function.
        settings: see :class:`Batcher`.

    Example:
        >>> import asyncio
        >>> @batched(max_batch_size=8)
        ... async def double(numbers: list[int]) -> list[int]:
        ...     return [number * 2 for number in numbers]
        >>> async def main():
        ...     return await double.map(range(3))
        >>> asyncio.run(main())
        [0, 2, 4]
    """

    def decorate(function: Any) -> Batcher[Any, Any]:
        return Batcher(function, **settings)

    return decorate if fn is None else decorate(fn)


def _close_quietly(queue: BatchQueue) -> None:
    # In a process that was forked the queue is the parent's.
    with contextlib.suppress(errors.ForkError):
        queue.close()
