"""A router that reads one stream of the worker given as the first argument, and prints each item. With a
second argument its request is a stream: an item, and then silence.
"""

from __future__ import annotations

import asyncio
import sys

import headrace as hr


async def one_item():
    yield 1
    await asyncio.Event().wait()


async def main() -> None:
    async with hr.Router(sys.argv[1]) as router:
        async for item in await router.generate(one_item() if sys.argv[2:] else None):
            print("read", item, flush=True)


asyncio.run(main())
