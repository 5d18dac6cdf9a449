"""A router that reads one stream of the worker given as the first argument, and prints each item."""

from __future__ import annotations

import asyncio
import sys

import headrace as hr


async def main() -> None:
    async with hr.Router(sys.argv[1]) as router:
        async for item in await router.generate(None):
            print("read", item, flush=True)


asyncio.run(main())
