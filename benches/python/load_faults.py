"""Loads that break something: the client cancels (cancel), the worker is killed (kill).

Both use CLOCK_MONOTONIC, which all processes of a Linux machine share.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter

from arms import Client
from bench import Bench, Figures, cpu_figures, percentile

# Long enough for a consumer and an engine to be parked again after the first item.
PARK_S = 0.002


async def cancel(bench: Bench) -> Figures:
    """Cancel a client's task, and ask the engine when it saw its CancelledError."""
    took_ms: list[float] = []
    before = await bench.cpu_s()
    for request_id in range(bench.params["samples"]):
        opened = asyncio.Event()
        task = asyncio.create_task(_consume(bench.client, request_id, opened))
        await opened.wait()
        await asyncio.sleep(PARK_S)
        start_ns = time.monotonic_ns()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        seen_ns = await bench.client.call("cancelled_at", {"id": request_id})
        took_ms.append((seen_ns - start_ns) / 1e6)
    after = await bench.cpu_s()
    return {
        "p50_ms": percentile(took_ms, 50),
        "p99_ms": percentile(took_ms, 99),
        **cpu_figures(before, after),
    }


async def kill(bench: Bench) -> Figures:
    """Kill each server under open streams, and time how long each stream takes to raise."""
    took_ms: list[float] = []
    errors: Counter[str] = Counter()
    for client, server in zip(bench.clients, bench.servers, strict=True):
        opened = [asyncio.Event() for _ in range(bench.params["streams"])]
        tasks = [
            asyncio.create_task(_until_error(client, index, event)) for index, event in enumerate(opened)
        ]
        for event in opened:
            await event.wait()
        await asyncio.sleep(PARK_S)
        start_ns = time.monotonic_ns()
        os.kill(server.pid, signal.SIGKILL)
        for error_ns, error in await asyncio.gather(*tasks):
            took_ms.append((error_ns - start_ns) / 1e6)
            errors[error] += 1
    return {
        "p50_ms": percentile(took_ms, 50),
        "p99_ms": percentile(took_ms, 99),
        **{f"errors_{name}": float(count) for name, count in errors.items()},
    }


async def _consume(client: Client, request_id: int, opened: asyncio.Event) -> None:
    """Read a stream that does not end."""
    async for _ in await client.generate("never_ending", {"id": request_id}):
        opened.set()


async def _until_error(client: Client, request_id: int, opened: asyncio.Event) -> tuple[int, str]:
    """Read until the stream raises; return when it did, and what."""
    try:
        await _consume(client, request_id, opened)
    except Exception as error:
        # Each arm has errors of its own; their names are among the figures.
        return time.monotonic_ns(), type(error).__name__
    raise RuntimeError("the stream of a killed worker ended cleanly")
