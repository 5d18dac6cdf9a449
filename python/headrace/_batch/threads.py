"""Synchronous functions: one fixed, named thread for each worker, on which ``on_start``, ``warmup``, the
function and ``on_stop`` all run.

A thread takes batches itself and waits for them without the interpreter. The loop only hears how it started
and that it has ended. A thread that was given up is never waited for: it ends when its function returns.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from headrace import errors
from headrace._batch.batch import Batch, Streams, results_of
from headrace._batch.functions import Hooks, Kind, Work, run_hook
from headrace._batch.lending import EVERY, LentStream, take_lent
from headrace._batch.lending import Streams as StreamSource
from headrace._batch.steps import Steps, drive
from headrace._headrace import BatchQueue, BatchTaken

_EXIT_SECONDS = 1.0
"""How long interpreter exit waits for threads to run ``on_stop``; one inside a function is left."""

_here = threading.local()


class _Worker:
    """One thread of a worker. A replacement has the same number and is another one."""

    def __init__(self, crew: Threads, number: int) -> None:
        self.number = number
        self.crew = crew
        self.given_up = False
        self.is_awaited = False
        self.thread = threading.Thread(
            target=crew.run, args=(self,), name=f"headrace-{crew.name}-{number}", daemon=True
        )
        self.timer: asyncio.TimerHandle | None = None


class Threads:
    """The workers of a synchronous function.

    Args:
        work: what they run.
        name: of the batcher; the threads carry it.
        workers: how many there are.
        isolate: whether a batch that fails is halved and run again.
        broken: called on the loop when no worker is left and none can be started, with the reason.
        streams: what lends each batch a stream, if anything does.
    """

    def __init__(
        self,
        work: Work,
        name: str,
        workers: int,
        broken: Callable[[BaseException], None],
        streams: StreamSource | None = None,
    ) -> None:
        self.name = name
        self.isolate = False
        self.watched = False
        self._work = work
        self._broken = broken
        self._streams = streams
        self._count = workers
        self._workers: dict[int, _Worker] = {}
        self._alive: set[_Worker] = set()
        self._gone = asyncio.Event()
        self._failure: BaseException | None = None

    def on_batch(self) -> None:
        """Threads take for themselves."""

    def inside(self) -> bool:
        """Whether the calling thread is one of these workers."""
        return getattr(_here, "crew", None) is self

    def attach(self, queue: BatchQueue) -> bool:
        """Take the loop. Whether :meth:`start` has something to wait for."""
        self._loop = asyncio.get_running_loop()
        self._queue = queue
        return True

    async def start(self, startup_timeout: float) -> None:
        """Start all threads and wait until each has run ``on_start`` and ``warmup``.

        Raises:
            StartupError: one of them failed.
            StartupTimeout: it took too long.
        """
        self._startup_timeout = startup_timeout
        self._missing = self._count
        self._ready: asyncio.Future[BaseException | None] = self._loop.create_future()
        _crews.add(self)
        for number in range(self._count):
            self._launch(number)
        try:
            async with asyncio.timeout(startup_timeout):
                error = await self._ready
        except TimeoutError:
            raise _too_slow(self.name, startup_timeout) from None
        if error is not None:
            raise error

    def on_lost(self, number: int) -> None:
        """A worker was given up: another thread takes its place."""
        lost = self._workers.get(number)
        if lost is None:
            return
        self._forget(lost)
        if self._work.kind is Kind.STEPS and not self._work.is_class:
            # The engine is one and the same: not before the thread that hangs in it has left it.
            lost.is_awaited = True
        else:
            self._replace(number)

    def _replace(self, number: int) -> None:
        worker = self._launch(number)
        if worker is not None:
            late = _too_slow(self.name, self._startup_timeout)
            worker.timer = self._loop.call_later(self._startup_timeout, self._failed, worker, late)

    async def stop(self, *, abandon: bool = False) -> None:
        """Wait until every thread has run ``on_stop``. The queue is closed before."""
        if abandon:
            for worker in list(self._alive):
                self._forget(worker)
        if self._alive:
            await self._gone.wait()

    def fail_all(self, error: BaseException) -> None:
        """Fail what waits: it did not start, or is broken. The queue drains."""
        self._failure = error
        while (taken := self._queue.try_take(0, EVERY)) is not None:
            taken.fail(error)

    def close_queue(self) -> None:
        """Have the threads end once they have nothing to do."""
        self._queue.close()

    def threads(self) -> list[threading.Thread]:
        """Those that have not been given up."""
        return [worker.thread for worker in list(self._alive) if worker.thread.is_alive()]

    def _launch(self, number: int) -> _Worker | None:
        worker = _Worker(self, number)
        self._workers[number] = worker
        self._alive.add(worker)
        self._gone.clear()
        try:
            worker.thread.start()
        except RuntimeError as error:
            self._failed(worker, _not_started(self.name, number, error))
            return None
        return worker

    def _forget(self, worker: _Worker) -> None:
        worker.given_up = True
        self._ended(worker)

    # What a thread says, on the loop.

    def _started(self, worker: _Worker) -> None:
        if worker.timer is not None:
            worker.timer.cancel()
        self._missing -= 1
        if not self._missing and not self._ready.done():
            self._ready.set_result(None)

    def _failed(self, worker: _Worker, error: BaseException) -> None:
        if worker.timer is not None:
            worker.timer.cancel()
        if worker.given_up:
            return
        self._forget(worker)
        if not self._ready.done():
            self._ready.set_result(error)
        elif self._missing <= 0 and not self._queue.closed:
            # A replacement. As long as others are there, the batcher goes on with those.
            if self._alive:
                self._loop.call_exception_handler({"message": str(error), "exception": error})
            else:
                self._broken(error)

    def _ended(self, worker: _Worker) -> None:
        if worker.is_awaited and not self._queue.closed:
            worker.is_awaited = False
            self._replace(worker.number)
        self._alive.discard(worker)
        if not self._alive:
            self._gone.set()

    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        # Nobody listens any more when the loop has ended.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    # On a worker's thread.

    def run(self, worker: _Worker) -> None:
        """The life of a thread."""
        _here.crew = self
        hooks = None
        try:
            hooks = self._work.make()
            run_hook(hooks.on_start)
            try:
                run_hook(hooks.warmup)
            except BaseException:
                self._stop(hooks)
                raise
        except BaseException as error:
            self._tell(self._failed, worker, _not_started(self.name, worker.number, error))
            return
        self._tell(self._started, worker)
        try:
            if not worker.given_up:
                self._serve(worker, hooks)
        finally:
            self._stop(hooks)
            self._tell(self._ended, worker)

    def _serve(self, worker: _Worker, hooks: Hooks) -> None:
        if self._work.kind is Kind.STEPS:
            self._serve_steps(worker, hooks.run)
            return
        run = run_streams if self._work.kind is Kind.STREAM else run_function
        while not worker.given_up:
            taken, stream = self._next(worker)
            if taken is None:
                return
            within = self._queue.enter()
            try:
                if self._failure is not None:
                    taken.fail(self._failure)
                else:
                    run(hooks.run, taken, self.isolate, stream)
            finally:
                within.leave()
                if stream is not None:
                    stream.release()
            # The next wait may be long, and items may be large.
            del taken, stream

    def _next(self, worker: _Worker) -> tuple[BatchTaken | None, LentStream | None]:
        if self._streams is None:
            return self._queue.next_batch(worker.number), None
        lent = take_lent(self._streams, self._queue, worker.number, lambda: not worker.given_up)
        return lent or (None, None)

    def _serve_steps(self, worker: _Worker, engine: Any) -> None:
        steps = Steps(self._queue, worker.number, engine, watched=self.watched)
        while not worker.given_up:
            if steps.idle and not self._queue.wait_takable():
                return
            within = self._queue.enter()
            try:
                drive(steps.turn())
            except BaseException as error:
                # What would end the program ends the requests; others rely on the thread.
                drive(steps.abort(error))
            finally:
                within.leave()
        if not steps.idle:
            # They have been told that the worker is lost. The engine may be used again.
            drive(steps.leave())

    def _stop(self, hooks: Hooks) -> None:
        try:
            run_hook(hooks.on_stop)
        except BaseException as error:
            self._report("on_stop", error)

    def _report(self, what: str, error: BaseException) -> None:
        message = f"{what} of the batcher {self.name!r} raised"
        self._tell(self._loop.call_exception_handler, {"message": message, "exception": error})


def run_function(
    function: Callable[[Any], Any], taken: BatchTaken, isolate: bool, stream: LentStream | None
) -> None:
    """Run a function on a batch, and on its halves when it fails and is to be isolated."""
    left = [taken]
    while left:
        part = left.pop()
        try:
            results = results_of(function(Batch(part, stream)))
            if stream is not None:
                stream.synchronize()
                if not left:
                    # Whoever is told may want it next.
                    stream.release()
            part.complete(results)
        except BaseException as error:
            halves = part.split() if isolate and isinstance(error, Exception) else None
            if halves is None:
                part.fail(error)
            else:
                left += reversed(halves)
        if left:
            left[-1].rearm()


def run_streams(
    function: Callable[[Any], Any], taken: BatchTaken, _isolate: bool, _stream: LentStream | None
) -> None:
    """Run a generator function on a batch until it ends or nobody reads."""
    try:
        streams = Streams(taken)
        steps = function(Batch(taken))
        try:
            for step in steps:
                if not streams.give(step):
                    break
        finally:
            steps.close()
    except BaseException as error:
        taken.fail(error)
    else:
        taken.finish()


def _not_started(name: str, number: int, cause: BaseException) -> errors.StartupError:
    error = errors.StartupError(
        f"worker {number} of the batcher {name!r} did not start: {type(cause).__name__}: {cause}",
        worker=number,
    )
    error.__cause__ = cause
    return error


def _too_slow(name: str, timeout: float) -> errors.StartupTimeout:
    return errors.StartupTimeout(
        f"the workers of the batcher {name!r} did not start within {timeout:g} s (startup_timeout)"
    )


_crews: weakref.WeakSet[Threads] = weakref.WeakSet()


def _close_all() -> None:
    """Have idle threads run ``on_stop`` before the interpreter goes."""
    until = time.monotonic() + _EXIT_SECONDS
    crews = list(_crews)
    for crew in crews:
        crew.close_queue()
    for crew in crews:
        for thread in crew.threads():
            thread.join(max(0.0, until - time.monotonic()))


atexit.register(_close_all)
# The threads, and the locks that they may have held, are the parent's.
os.register_at_fork(after_in_child=_crews.clear)
