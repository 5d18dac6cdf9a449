"""Many open streams on which nothing happens: what one costs in memory on each side.

With a server, the client only holds the streams, each with one item taken. In one process, a task
reads each stream, so that its figure is an engine's own cost: a task and a parked generator.
"""

import asyncio
import gc
from typing import Any

import usage
from bench import Bench, Figures

# How many streams are opened at once.
WAVE = 100


async def idle(bench: Bench) -> Figures:
    """Open the streams, and weigh both processes before and after."""
    held: list[object] = []
    await _open(bench, held, range(bench.params["warm_up"]))
    client_before, server_before = await _anonymous_kib(bench)
    first, count = bench.params["warm_up"], bench.params["streams"]
    await _open(bench, held, range(first, first + count))
    client_after, server_after = await _anonymous_kib(bench)
    client_kib = (client_after - client_before) / count
    if not bench.servers:
        return {"engine_kib": client_kib}
    return {"client_kib": client_kib, "server_kib": (server_after - server_before) / count}


async def _open(bench: Bench, held: list[object], ids: range) -> None:
    """Open one stream for each id, a wave at a time, and keep them in `held`."""
    for start in range(ids.start, ids.stop, WAVE):
        wave = ids[start - ids.start : start - ids.start + WAVE]
        held.extend(await asyncio.gather(*(_open_one(bench, index) for index in wave)))


async def _open_one(bench: Bench, index: int) -> object:
    """Open a stream and take its first item; return what keeps it open."""
    stream = await bench.client.generate("never_ending", {"id": index})
    if bench.servers:
        iterator = aiter(stream)
        await anext(iterator)
        return stream, iterator
    opened = asyncio.Event()
    task = asyncio.create_task(_consume(stream, opened))
    await opened.wait()
    return task


async def _consume(stream: Any, opened: asyncio.Event) -> None:
    """Read a stream that does not end."""
    async for _ in stream:
        opened.set()


async def _anonymous_kib(bench: Bench) -> tuple[float, float]:
    """Return the memory of both processes after a collection."""
    gc.collect()
    server = await bench.client.call("collected_usage", b"") if bench.servers else None
    return usage.read()["anonymous_kib"], server["anonymous_kib"] if server else 0.0
