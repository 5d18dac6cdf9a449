"""Whatever is left by an exception passes it on: no block of ours swallows what is raised in it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import headrace as hr
import pytest
from headrace import cuda

from support import serving

pytestmark = pytest.mark.asyncio


async def count(request: int) -> AsyncIterator[int]:
    for number in range(request):
        yield number


async def echo(items: list[Any]) -> list[Any]:
    return items


async def once(items: list[Any]) -> AsyncIterator[list[Any]]:
    yield items


@contextlib.asynccontextmanager
async def response_stream() -> AsyncIterator[Any]:
    async with serving(count) as (_, router):
        yield await router.generate(3)


@contextlib.asynccontextmanager
async def call() -> AsyncIterator[Any]:
    async with serving(count) as (_, router):
        yield router.generate(3)


@contextlib.asynccontextmanager
async def batch_stream() -> AsyncIterator[Any]:
    async with hr.Batcher(once) as batcher:
        yield batcher.stream(1)


@contextlib.asynccontextmanager
async def lease() -> AsyncIterator[Any]:
    async with cuda.StreamPool(backend="sim") as pool:
        yield pool.lease()


def itself(make: Callable[[], Any]) -> Callable[[], AbstractAsyncContextManager[Any]]:
    return lambda: contextlib.nullcontext(make())


BLOCKS: dict[str, Callable[[], AbstractAsyncContextManager[Any]]] = {
    "serve": itself(lambda: hr.serve(count)),
    "Router": itself(lambda: hr.Router("127.0.0.1:1")),
    "Batcher": itself(lambda: hr.Batcher(echo)),
    "StreamPool": itself(lambda: cuda.StreamPool(backend="sim")),
    "a response stream": response_stream,
    "a call": call,
    "a batch stream": batch_stream,
    "a lease": lease,
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
async def test_what_is_raised_in_a_block_leaves_it(block):
    async with block() as entered:
        with pytest.raises(ArithmeticError):
            async with entered:
                raise ArithmeticError
