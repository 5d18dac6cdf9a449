"""A worker with an engine for each thing that tests do to processes. Prints its address, serves until killed.

Settings are given as ``name=number`` arguments.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

import headrace as hr


async def count(request):
    """Yields the numbers from `start` up to `items`; with `gap`, so many seconds apart; then waits for ever
    when `hang` is set. With `die`, the process ends instead of the item of that number. Waits `delay` seconds
    before all.
    """
    await asyncio.sleep(request.get("delay", 0))
    for number in range(request.get("start", 0), request["items"]):
        if request.get("die") == number:
            os._exit(1)
        yield number
        if request.get("gap"):
            await asyncio.sleep(request["gap"])
    if request.get("hang"):
        await asyncio.Event().wait()


async def block(request):
    """Blocks the whole loop after its first item."""
    yield "blocking"
    await asyncio.sleep(0)
    time.sleep(request["seconds"])
    yield "done"


async def late(request):
    """Answers after so many seconds."""
    await asyncio.sleep(request["seconds"])
    return "late"


async def echo(request):
    return request


async def mirror(request, ctx):
    """Yields the items of a request stream."""
    async for item in ctx.requests:
        yield item


async def main() -> None:
    settings = {}
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        settings[name] = float(value) if "." in value else int(value)
    # The function that blocks has to answer first, so nobody is asked whether it answers.
    echo.health_check = "ping"
    engines = {"count": count, "block": block, "late": late, "echo": echo, "mirror": mirror}
    async with hr.serve(engines, **settings) as worker:
        print(worker.address, flush=True)
        await worker.wait_closed()


asyncio.run(main())
