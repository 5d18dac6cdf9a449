"""Nothing, after use: the runner counts how often the process is switched meanwhile."""

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from batching_arms import Function
from batching_functions import NOTHING
from batching_place import Place
from bench import Figures
from server import stdin_closed, tell


def _nothing(items: list[Any]) -> list[Any]:
    return items


async def idle(place: Place) -> Figures:
    """Submit some, say so, and wait until the runner has looked."""
    function = NOTHING if place.params["is_async"] else Function("nothing", _nothing, is_async=False)
    async with AsyncExitStack() as stack:
        if place.arm.name != "bare":
            batcher = await stack.enter_async_context(place.open(function))
            submit = partial(asyncio.gather, *map(batcher.submit, range(place.params["items"])))
            await submit()
        tell({"idle": 1.0})
        await stdin_closed()
    return {}
