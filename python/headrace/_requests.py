"""Sending a request stream: the task that runs a caller's asynchronous iterator.

The iterator is always closed when nobody takes its items any more, wherever it waits. What it raises while
the call goes on is the caller's to see; what it raises while it is being closed goes to the loop's exception
handler.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from headrace._headrace import RequestSink
from headrace.errors import StreamKilled


def start(requests: AsyncIterable[Any], sink: RequestSink) -> None:
    """Begin to send what the iterator yields, in a task with the context of whoever awaits the call."""
    task = asyncio.get_running_loop().create_task(_send(requests, sink), name="headrace request stream")
    # The loop keeps only weak references to tasks; the sink, which its hub holds, keeps this one.
    sink.bind(task)


async def _send(requests: AsyncIterable[Any], sink: RequestSink) -> None:
    iterator: AsyncIterator[Any] | None = None
    try:
        iterator = aiter(requests)
        accepted = sink.begin()
        if accepted is not None:
            await accepted
        if sink.is_closed:
            raise StreamKilled
        await _push_all(iterator, sink)
    except GeneratorExit:
        # The loop is gone: nothing can be awaited any more.
        raise
    except BaseException as error:
        failed = sink.fail(_raisable(error))
        await _close(iterator)
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
            raise
        if not failed and not isinstance(error, StreamKilled):
            _report(error, iterator)
    else:
        sink.finish()


async def _push_all(iterator: AsyncIterator[Any], sink: RequestSink) -> None:
    pump = sink.pump(iterator)
    if pump is not None:
        await pump
        return
    async for item in iterator:
        wait = sink.push(item)
        if wait is not None:
            await wait


def _raisable(error: BaseException) -> BaseException:
    """The exception as the reader of the response can be given it: one that means the end of an iteration
    would look like an end there.
    """
    if not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    raised = RuntimeError(f"the request stream raised {type(error).__name__}")
    raised.__cause__ = error
    return raised


async def _close(iterator: AsyncIterator[Any] | None) -> None:
    """Close an iterator that was left early, if it can be closed."""
    close = getattr(iterator, "aclose", None)
    if close is None:
        return
    try:
        await close()
    except (KeyboardInterrupt, SystemExit, asyncio.CancelledError):
        raise
    except BaseException as error:
        _report(error, iterator)


def _report(error: BaseException, iterator: object) -> None:
    asyncio.get_running_loop().call_exception_handler(
        {
            "message": f"an exception was raised while the request stream {iterator!r} was being closed",
            "exception": error,
        }
    )
