"""Engines for `headrace serve`."""

from __future__ import annotations

import asyncio

CONSTANT = 1


async def gated(request):
    """Yields, waits (a moment, or for ever), yields."""
    yield "before"
    if request == "go on":
        await asyncio.sleep(0.3)
    else:
        await asyncio.Event().wait()
    yield "after"


class Model:
    async def generate(self, request):
        for number in range(request):
            yield number


class nested:
    @staticmethod
    async def echo(request):
        return request
