"""What a worker runs: tells the kinds of engine apart and drives each where it lives.

Engines on the loop get one task per request. Synchronous engines run on fixed, named threads; a request
holds its place until its function has returned, also when nobody wants the answer any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import os
import queue
import threading
import traceback
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, cast

from headrace import errors
from headrace._batch.engine import BatchEngine, Refusal
from headrace._headrace import Context, RequestStream, Sink
from headrace.batcher import Batcher
from headrace.codec import Unencodable, encode_item

Start = Callable[[Any, Sink], None]
"""Begins to answer a request; returns at once."""

_ONLY_STREAMS = (
    "this endpoint takes a stream of requests, not a single one; pass an asynchronous iterator as the request"
)
_NO_STREAMS = "this endpoint takes a single request, not a stream of them"

_THREADS_MAX = 32
"""Threads of one synchronous engine at most, as in ``concurrent.futures``."""


def engine_name(engine: object) -> str:
    """The endpoint name of an engine that is given without one: its ``__name__``, or its class's; a batcher's
    is its own.

    Raises:
        ValueError: it has no usable name, as a lambda.
    """
    if isinstance(engine, Batcher):
        return cast("Batcher[Any, Any]", engine).name
    name = getattr(engine, "__name__", None) or type(engine).__name__
    if name == "<lambda>":
        raise ValueError('a lambda has no name; serve it as {"endpoint": engine}')
    return cast("str", name)


def resolve(engine: Any) -> Callable[..., Any]:
    """The function behind an engine: itself, the ``generate`` of an object or class, or what asks a batcher.

    Raises:
        TypeError: it is neither callable nor has a ``generate`` method.
    """
    if isinstance(engine, Batcher):
        engine = BatchEngine(cast("Batcher[Any, Any]", engine))
    elif inspect.isclass(engine):
        engine = cast("Any", engine)()
    generate = getattr(engine, "generate", None)
    if callable(generate):
        return generate
    if callable(engine):
        return cast("Callable[..., Any]", engine)
    raise TypeError(f"{engine!r} is no engine: give a function, or an object with a generate method")


def takes_context(function: Callable[..., Any]) -> bool:
    """Whether an engine is called with ``(request, ctx)`` rather than ``(request)``.

    Raises:
        TypeError: it takes neither.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return False
    for count in (2, 1):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count == 2
    raise TypeError(f"an engine takes (request) or (request, ctx), not {signature}")


_ITERATORS = (AsyncIterator, AsyncIterable, AsyncGenerator, RequestStream)
"""Annotations of a first parameter that takes a request stream."""


def takes_iterator(function: Callable[..., Any]) -> bool:
    """Whether an engine's first parameter is annotated as an asynchronous iterator: it takes streams."""
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except Exception:
        # Some annotation cannot be evaluated here, as one that is imported for type checkers only.
        try:
            parameters = inspect.signature(function).parameters
        except ValueError:
            return False
    first = next(iter(parameters.values()), None)
    if first is None or first.kind is first.VAR_POSITIONAL:
        return False
    if isinstance(first.annotation, str):
        name = first.annotation.partition("[")[0].rpartition(".")[2].strip()
        return any(name == each.__name__ for each in _ITERATORS)
    origin = typing.get_origin(first.annotation) or first.annotation
    return any(origin is each for each in _ITERATORS)


def _call_kind(function: Callable[..., Any]) -> Callable[..., Any]:
    """What decides how a function runs: itself, or the ``__call__`` of an object."""
    while isinstance(function, functools.partial):
        function = cast("Any", function).func
    if inspect.isfunction(function) or inspect.ismethod(function):
        return function
    return getattr(function, "__call__", function)  # noqa: B004


class Runner:
    """Runs one engine.

    Args:
        engine: a coroutine, function, generator or asynchronous generator function, an object or class with
            a ``generate`` method of such a kind, or a batcher.
        threads: threads for a synchronous engine; more than one only ever run when requests overlap.
        expose_tracebacks: whether callers are told the engine's traceback.

    Attributes:
        iterator_first: whether a request stream is given as the request; else it is in the context alone.
        refuses_single: why single requests are refused, if they are.
        refuses_stream: why request streams are refused, if they are.
        health_check: the engine's attribute of that name, if it has one.

    Raises:
        TypeError: it is no engine, or a synchronous one that declares a request stream.
    """

    def __init__(self, engine: Any, threads: int, *, expose_tracebacks: bool = False) -> None:
        self._function = resolve(engine)
        owner = getattr(self._function, "__self__", None)
        self._batch_engine = owner if isinstance(owner, BatchEngine) else None
        asked = self._batch_engine
        self._answer = None if asked is None or asked.streams else asked.answer
        # A class was instantiated, and only its instance may have it.
        self.health_check = getattr(getattr(self._function, "__self__", engine), "health_check", None)
        self._takes_context = takes_context(self._function)
        self._expose_tracebacks = expose_tracebacks
        self._threads: _Threads | None = None
        kind = _call_kind(self._function)
        if inspect.isasyncgenfunction(kind):
            self._run: Callable[[Any, Sink], Any] = self._run_async_generator
        elif inspect.iscoroutinefunction(kind):
            self._run = self._run_coroutine
        else:
            is_generator = inspect.isgeneratorfunction(kind)
            run = self._run_generator if is_generator else self._run_function
            most = min(threads, _THREADS_MAX, (os.cpu_count() or 1) + 4)
            name = getattr(self._function, "__name__", "engine")
            self._threads = _Threads(run, f"headrace-{name}", most)
        self.iterator_first = takes_iterator(self._function)
        self.refuses_single = _ONLY_STREAMS if self.iterator_first else None
        self.refuses_stream = self._why_no_streams()

    def _why_no_streams(self) -> str | None:
        if self._threads is not None:
            if self.iterator_first:
                raise TypeError("a synchronous engine cannot read a request stream; make it an async one")
            return f"{_NO_STREAMS}; its engine is synchronous, and only asynchronous ones can read a stream"
        if self._takes_context or self.iterator_first:
            return None
        return (
            f"{_NO_STREAMS}; an engine reads a stream as ctx.requests, or as its first parameter when that "
            "is annotated as AsyncIterator"
        )

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the loop that tasks run on (``asyncio.get_running_loop`` costs a system call each time) and
        the context variables that every request begins with: those of here, not of whoever is served.
        """
        self._create_task = loop.create_task
        self._context = contextvars.copy_context()

    async def prepare(self) -> None:
        """Start what has to be started before the first request: a batcher.

        Raises:
            StartupError: it did not start.
        """
        if self._batch_engine is not None:
            await self._batch_engine.start()

    def watch(self, declare_unready: Callable[[str], None]) -> None:
        """Have the worker told when the engine cannot work any more; only a batcher's says so."""
        if self._batch_engine is not None:
            self._batch_engine.watch(declare_unready)

    def start(self, request: Any, sink: Sink) -> None:
        """Begin to answer a request, on the loop of :meth:`attach`."""
        if self._threads is not None:
            self._threads.submit(self._context.copy(), request, sink)
            return
        if self._answer is not None:
            self._answer(request, sink, self._unanswered)
            return
        # The loop keeps only weak references to tasks; the sink, which its hub holds until the request
        # has ended, keeps this one through what it is bound to.
        sink.bind(self._create_task(self._run(request, sink), context=self._context.copy()))

    async def close(self) -> None:
        """Let the engine's threads end once they have nothing to do, and stop a batcher."""
        if self._threads is not None:
            self._threads.close()
        if self._batch_engine is not None:
            await self._batch_engine.stop()

    def _call(self, request: Any, sink: Sink) -> Any:
        return self._function(request, sink.context()) if self._takes_context else self._function(request)

    async def _run_async_generator(self, request: Any, sink: Sink) -> None:
        try:
            await self._pump(self._call(request, sink), sink)
        except BaseException as error:
            self._failed(sink, error)

    async def _run_coroutine(self, request: Any, sink: Sink) -> None:
        try:
            result = await cast("Awaitable[Any]", self._call(request, sink))
            if hasattr(result, "__aiter__"):
                await self._pump(cast("AsyncIterator[Any]", result), sink)
            elif inspect.isgenerator(result):
                raise TypeError("a coroutine returned a generator; return an asynchronous one")
            else:
                sink.finish_with(result)
        except BaseException as error:
            self._failed(sink, error)

    async def _pump(self, stream: AsyncIterator[Any], sink: Sink) -> None:
        sink.open()
        try:
            pump = sink.pump(stream)
            if pump is not None:
                await pump
            else:
                async for item in stream:
                    wait = sink.push(item)
                    if wait is not None:
                        await wait
        except BaseException:
            await _close_generator(stream)
            raise
        sink.finish()

    def _run_generator(self, request: Any, sink: Sink) -> None:
        try:
            stream = cast("Iterator[Any]", self._call(request, sink))
            sink.open()
            try:
                for item in stream:
                    _push(sink, item)
            finally:
                close = getattr(stream, "close", None)
                if close is not None:
                    close()
        except BaseException as error:
            self._failed(sink, error)
        else:
            sink.finish()

    def _run_function(self, request: Any, sink: Sink) -> None:
        try:
            result = self._call(request, sink)
            if inspect.isgenerator(result):
                sink.open()
                for item in result:
                    _push(sink, item)
            else:
                _push(sink, result)
            sink.finish()
        except BaseException as error:
            self._failed(sink, error)

    def _unanswered(self, sink: Sink, error: BaseException) -> None:
        """Tell the caller why a batcher has no answer. A cancelled item is one whose caller has left."""
        with contextlib.suppress(asyncio.CancelledError):
            self._failed(sink, error)

    def _failed(self, sink: Sink, error: BaseException) -> None:
        """Tell the caller what the engine raised; what ends the program goes on."""
        killed = isinstance(error, errors.StreamKilled) or sink.is_killed
        if killed:
            sink.fail("engine", "Killed", "nobody reads any more")
        else:
            text = "".join(traceback.format_exception(error)) if self._expose_tracebacks else ""
            match error:
                case errors.PayloadTooLarge():
                    sink.fail("too_large", f"{error.limit}/{error.actual}", str(error), text)
                case Refusal():
                    sink.fail("refused", str(error.retry_after_ms), str(error), text)
                case Unencodable():
                    sink.fail("encode", "TypeError", str(error), text)
                case _:
                    sink.fail("engine", type(error).__name__, str(error), text)
        if isinstance(error, asyncio.CancelledError) and killed:
            raise error
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise error


def _push(sink: Sink, item: Any) -> None:
    """Push an item from an engine's own thread, waiting there for credit."""
    if not sink.push_blocking(*encode_item(item)):
        raise errors.StreamKilled


async def _close_generator(stream: object) -> None:
    """Close an asynchronous generator that was left early; what it raises meanwhile is its own affair."""
    close = getattr(stream, "aclose", None)
    if close is None:
        return
    try:
        await close()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        pass


class _Threads:
    """Fixed threads for a synchronous engine: started when requests overlap, kept until closed."""

    def __init__(self, run: Callable[[Any, Sink], None], name: str, most: int) -> None:
        self._run = run
        self._name = name
        self._most = most
        self._queue: queue.SimpleQueue[tuple[contextvars.Context, Any, Sink] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        # Threads without a request, less requests that wait. Both sides change it as they decide, not when a
        # thread has got so far: one that was counted as idle while it took a request would be given a second.
        self._free = 0

    def submit(self, context: contextvars.Context, request: Any, sink: Sink) -> None:
        with self._lock:
            if self._free <= 0 and self._started < self._most:
                thread = threading.Thread(
                    target=self._work, name=f"{self._name}-{self._started}", daemon=True
                )
                thread.start()
                self._started += 1
            else:
                self._free -= 1
            self._queue.put((context, request, sink))

    def close(self) -> None:
        with self._lock:
            for _ in range(self._started):
                self._queue.put(None)

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            if job is None:
                return
            context, request, sink = job
            if sink.is_killed:
                sink.fail("engine", "Killed", "nobody reads any more")
            else:
                try:
                    context.run(self._run, request, sink)
                except BaseException:
                    # An engine's SystemExit ends its request, not this thread, which others rely on.
                    traceback.print_exc()
            del job, context, request, sink
            with self._lock:
                self._free += 1


__all__ = ["Context", "Runner", "Start", "engine_name", "resolve", "takes_context"]
