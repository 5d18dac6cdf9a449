"""Asynchronous functions: up to ``workers`` tasks on the loop, each of which runs one batch after the other.

While a function runs, its context says so: a submit that comes from there looks whether anybody is free to
take the item, since a function that waits for itself would wait for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import weakref
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, cast

from headrace import errors
from headrace._batch.batch import Batch, Streams, results_of
from headrace._batch.functions import Hooks, Kind, Work, run_hook
from headrace._batch.lending import EVERY, Dispatcher, LentStream
from headrace._batch.lending import Streams as StreamSource
from headrace._batch.steps import Steps, drive_async
from headrace._headrace import BatchQueue, BatchTaken, Seat


class Tasks:
    """The workers of an asynchronous function.

    Args:
        work: what they run.
        name: of the batcher.
        workers: how many run at once.
        streams: what lends each batch a stream, if anything does.
    """

    def __init__(self, work: Work, name: str, workers: int, streams: StreamSource | None = None) -> None:
        self.name = name
        self.isolate = False
        self.watched = False
        self._work = work
        self._count = workers
        self._streams = streams
        self._dispatcher: Dispatcher | None = None
        self._hooks: list[Hooks] = []
        self._failure: BaseException | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._seats: dict[int, Seat] = {}
        self._lost: set[asyncio.Task[None]] = set()
        self.run = self._run_streams if work.kind is Kind.STREAM else self._run_function

    def on_batch(self) -> Callable[[BatchTaken], None] | None:
        """What takes batches on the loop; an engine, or who lends streams, takes for itself."""
        if self._work.kind is Kind.STEPS or self._streams is not None:
            return None
        return self._begin

    def inside(self) -> bool:
        """Whether the calling thread is one of these workers: it is the loop's, which is told otherwise."""
        return False

    def attach(self, queue: BatchQueue) -> bool:
        """Take the loop, and the context variables that every batch begins with: those of here. Whether
        :meth:`start` has something to wait for.
        """
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._queue = queue
        self.enter = queue.enter
        if self._streams is not None:
            self._dispatcher = Dispatcher(self._streams, queue, self._count, self._begin_lent)
            self._dispatching = self._loop.create_task(self._dispatcher.run())
        if self._work.kind is Kind.STEPS or self._work.is_class:
            return True
        hooks = self._work.make()
        self._function = hooks.run
        if hooks.on_start is None and hooks.warmup is None:
            self._hooks.append(hooks)
            return False
        return True

    async def start(self, startup_timeout: float) -> None:
        """Run ``on_start`` and ``warmup``; batches wait meanwhile.

        Raises:
            StartupError: one of them failed.
            StartupTimeout: it took too long.
        """
        is_engine = self._work.kind is Kind.STEPS
        number = 0
        limit = asyncio.timeout(startup_timeout)
        try:
            async with limit:
                while number < (self._count if is_engine else 1):
                    await self._prepare()
                    number += 1
        except TimeoutError as error:
            await self._stop_all()
            if limit.expired():
                raise errors.StartupTimeout(
                    f"the batcher {self.name!r} did not start within {startup_timeout:g} s (startup_timeout)"
                ) from None
            raise self._not_started(number, error) from error
        except Exception as error:
            await self._stop_all()
            raise self._not_started(number, error) from error
        except BaseException:
            await self._stop_all()
            raise
        self._function = self._hooks[0].run
        if is_engine:
            for number, hooks in enumerate(self._hooks):
                self._launch(number, hooks.run)

    async def _prepare(self) -> None:
        hooks = self._work.make()
        await _awaited(run_hook(hooks.on_start))
        self._hooks.append(hooks)
        await _awaited(run_hook(hooks.warmup))

    def _not_started(self, number: int, cause: BaseException) -> errors.StartupError:
        return errors.StartupError(
            f"the batcher {self.name!r} did not start: {type(cause).__name__}: {cause}", worker=number
        )

    def fail_all(self, error: BaseException) -> None:
        """Fail what waits: it did not start. The queue drains."""
        self._failure = error
        if self._dispatcher is not None:
            self._dispatcher.failure = error
        if self._work.kind is Kind.STEPS or self._dispatcher is not None:
            while (taken := self._queue.try_take(0, EVERY)) is not None:
                taken.fail(error)

    def on_lost(self, number: int) -> None:
        """A worker was given up: its task is cancelled. The next batch finds a new one; an engine is stepped
        by a new one.
        """
        self._leave(number)
        task = self._tasks.pop(number, None)
        if task is None:
            return
        self._lost.add(task)
        task.add_done_callback(self._lost.discard)
        if self._dispatcher is not None:
            self._dispatcher.lost()
        if self._work.kind is Kind.STEPS:
            # Not before the engine has been left.
            task.add_done_callback(lambda _: self._step_again(number))
        task.cancel()

    def _step_again(self, number: int) -> None:
        if number < len(self._hooks) and not self._queue.closed:
            self._launch(number, self._hooks[number].run)

    async def stop(self, *, abandon: bool = False) -> None:
        """Run ``on_stop``. The queue is closed before, and nothing runs any more, or is abandoned."""
        for number in list(self._seats):
            self._leave(number)
        tasks = [task for task in self._tasks.values() if not task.done()]
        if abandon:
            for task in tasks:
                task.cancel()
        elif tasks:
            await asyncio.wait(tasks)
        if self._dispatcher is not None:
            # Nothing is left to take, and it may wait for a stream that others have for long.
            self._dispatching.cancel()
            if not abandon:
                await asyncio.wait([self._dispatching])
        await self._stop_all()

    async def _stop_all(self) -> None:
        hooks, self._hooks = self._hooks, []
        for each in reversed(hooks):
            try:
                await _awaited(run_hook(each.on_stop))
            except Exception as error:
                message = f"on_stop of the batcher {self.name!r} raised"
                self._loop.call_exception_handler({"message": message, "exception": error})

    # A batch.

    def _begin(self, taken: BatchTaken) -> None:
        """Begin with a batch for which no task waits at its worker's seat: there is none yet, or the one that
        was there has been cancelled.
        """
        if self._failure is not None:
            taken.fail(self._failure)
            return
        number = taken.worker
        self._leave(number)
        self._employ(number, taken)

    def _employ(self, number: int, taken: BatchTaken) -> None:
        seat = self._seats[number] = self._queue.seat(number)
        serving = _serve(weakref.ref(self), taken, seat)
        task: Any = self._loop.create_task(serving, context=self._context.copy())
        # One that waits for a batch when its loop is thrown away has left nothing undone.
        task._log_destroy_pending = False
        self._tasks[number] = task

    def _leave(self, number: int) -> None:
        seat = self._seats.pop(number, None)
        if seat is not None:
            seat.close()

    # A batch with a stream, in a task of its own: what hands it out is a task itself, and waits for streams.

    def _begin_lent(self, taken: BatchTaken, stream: LentStream) -> None:
        number = taken.worker
        task = self._loop.create_task(self._run_lent(taken, stream), context=self._context.copy())
        self._tasks[number] = task
        task.add_done_callback(lambda task: self._free(number, task))

    def _free(self, number: int, task: asyncio.Task[None]) -> None:
        if self._dispatcher is not None and self._tasks.get(number) is task:
            self._dispatcher.free(number)

    async def _run_lent(self, taken: BatchTaken, stream: LentStream) -> None:
        within = self._queue.enter(asyncio.current_task())
        try:
            await self._run_function(taken, stream)
        finally:
            within.leave()
            stream.release()

    # What is run.

    async def _run_function(self, taken: BatchTaken, stream: LentStream | None = None) -> None:
        part = taken
        left: list[BatchTaken] = []
        while True:
            try:
                results = await self._function(Batch(part, stream))
                if type(results) is not list:
                    results = results_of(results)
                if stream is not None:
                    await stream
                    if not left:
                        # Whoever is told may want it next.
                        stream.release()
                part.complete(results)
            except BaseException as error:
                halves = part.split() if self.isolate and isinstance(error, Exception) else None
                if halves is None:
                    part.fail(error)
                    if isinstance(error, KeyboardInterrupt | SystemExit):
                        for other in left:
                            other.fail(error)
                        raise
                else:
                    left += reversed(halves)
            if not left:
                return
            part = left.pop()
            part.rearm()

    async def _run_streams(self, taken: BatchTaken) -> None:
        try:
            streams = Streams(taken)
            async with contextlib.aclosing(self._function(Batch(taken))) as steps:
                async for step in steps:
                    if not streams.give(step):
                        break
        except BaseException as error:
            taken.fail(error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        else:
            taken.finish()

    # An engine that steps.

    def _launch(self, number: int, engine: Any) -> None:
        steps = self._serve_steps(number, engine)
        self._tasks[number] = self._loop.create_task(steps, context=self._context.copy())

    async def _serve_steps(self, number: int, engine: Any) -> None:
        task = asyncio.current_task()
        steps = Steps(self._queue, number, engine, watched=self.watched)
        try:
            while True:
                within = self._queue.enter(task)
                await drive_async(steps.turn())
                within.leave()
                if steps.idle and steps.is_dry:
                    if not await self._queue.takable():
                        return
                else:
                    # An engine that never waits must not keep the loop from everything else.
                    await asyncio.sleep(0)
        except BaseException as error:
            await drive_async(steps.abort(error))
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise


async def _serve(crew: weakref.ref[Tasks], taken: BatchTaken | None, seat: Seat) -> None:
    """Run one batch after the other. While it waits for one it holds nothing of its crew: the loop holds the
    task, and functions often hold their batcher.
    """
    task = cast("asyncio.Task[None]", asyncio.current_task())
    while taken is not None:
        runner = crew()
        if runner is None:
            return
        within = runner.enter(task)
        found = copy_context()
        running = runner.run(taken)
        # The function may take long, the next wait too, and items may be large.
        del runner
        taken = None
        await running
        del running
        if not within.leave_clean(task, found):
            return
        taken = await seat


async def _awaited(returned: Any) -> None:
    if inspect.isawaitable(returned):
        await returned
