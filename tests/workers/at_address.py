"""An echo worker at the address given as the first argument."""

from __future__ import annotations

import asyncio
import sys

import headrace as hr


async def echo(request):
    return request


async def main() -> None:
    async with hr.serve(echo, sys.argv[1]) as worker:
        print(worker.address, flush=True)
        await worker.wait_closed()


asyncio.run(main())
