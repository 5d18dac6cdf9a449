"""Engines for worker processes."""

from __future__ import annotations

import asyncio
import os
import time

import msgspec


async def who(request):
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "index": os.environ["HEADRACE_WORKER_INDEX"],
        "request": request,
    }


async def gated(request):
    """Yields, waits until there is a file of that name, yields."""
    yield "before"
    while True:
        if is_open(request):
            break
        await asyncio.sleep(0.005)
    yield "after"


def is_open(gate):
    return os.path.exists(gate)


async def count(request):
    for number in range(request):
        yield number
        await asyncio.sleep(0.001)


async def crash(request):
    os._exit(request)


async def block(request):
    """Blocks its loop for longer than any test waits."""
    yield "blocking"
    await asyncio.sleep(0)
    time.sleep(600)


class Wanted(msgspec.Struct):
    name: str


async def typed(request):
    return [type(request).__name__, request.name]
