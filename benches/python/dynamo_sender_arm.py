"""Dynamo with handlers that push: they are given a `response_sender`, and it is not in the stubs.

Declaring the parameter selects this path. The handler is an async generator that yields nothing; it
sends each item, which encodes it at once, and closes. An exception ends the stream as an error.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import dynamo_arm


def push_handler(engine: Callable[[Any], Any]) -> Any:
    """Return the handler that runs an engine, and sends each item itself."""

    # `for ... yield` makes each an async generator, as it has to be, that yields nothing.
    async def answer(request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        response_sender.send(await engine(request))
        response_sender.close()
        for nothing in ():
            yield nothing

    async def stream(request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        async for item in engine(request):
            response_sender.send(item)
        response_sender.close()
        for nothing in ():
            yield nothing

    async def cancellable(request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        pushing = asyncio.create_task(_push(engine(request), response_sender))
        stopped = asyncio.ensure_future(context.async_killed_or_stopped())
        await asyncio.wait((pushing, stopped), return_when=asyncio.FIRST_COMPLETED)
        pushing.cancel()
        response_sender.close()
        for nothing in ():
            yield nothing

    if engine.__name__ == "never_ending":
        return cancellable
    return stream if inspect.isasyncgenfunction(engine) else answer


async def _push(items: AsyncIterator[Any], response_sender: Any) -> None:
    """Send all items."""
    async for item in items:
        response_sender.send(item)


def serve(engines: Mapping[str, Callable[[Any], Any]]) -> AbstractAsyncContextManager[str]:
    """Serve while entered; gives the namespace that the endpoints are registered in."""
    return dynamo_arm.serve(engines, handler=push_handler)


def connect(address: str) -> AbstractAsyncContextManager[dynamo_arm.Client]:
    """Keep a runtime to call a serving process with while entered."""
    return dynamo_arm.connect(address)
