"""Scale loads that move items: over more and more streams, and in larger and larger pieces."""

import asyncio
import time
from statistics import median
from time import perf_counter

from bench import Bench, Figures
from scale_processes import process_cpu_s

# How many streams are opened at once.
WAVE = 100


async def streams(bench: Bench) -> Figures:
    """Open a number of streams, let all of them begin, and read them to their ends; in rounds."""
    width = bench.params["x"]
    count = max(bench.params["items"] // width, bench.params["items_min"])
    await _round(bench, -1, min(width, WAVE), count)
    rounds: list[Figures] = []
    end = perf_counter() + bench.params["seconds"]
    while not rounds or perf_counter() < end:
        rounds.append(await _round(bench, len(rounds), width, count))
    return {key: median(figures[key] for figures in rounds) for key in rounds[0]} | {"rounds": len(rounds)}


async def _round(bench: Bench, gate: int, width: int, count: int) -> Figures:
    """Run one round: a task reads each stream."""
    tasks: list[asyncio.Task[None]] = []
    start = perf_counter()
    for first in range(0, width, WAVE):
        opened = [asyncio.Event() for _ in range(first, min(first + WAVE, width))]
        tasks += [asyncio.create_task(_read(bench, gate, count, event)) for event in opened]
        for event in opened:
            await event.wait()
    open_s = perf_counter() - start
    client_s, server_s = cpu_s(bench)
    start = perf_counter()
    await bench.client.call("open_gate", {"gate": gate})
    await asyncio.gather(*tasks)
    took_s = perf_counter() - start
    client_after_s, server_after_s = cpu_s(bench)
    return {
        "open_us": open_s / width * 1e6,
        "items_per_s": width * count / took_s,
        "client_us": (client_after_s - client_s) / (width * count) * 1e6,
        "server_us": (server_after_s - server_s) / (width * count) * 1e6,
    }


async def _read(bench: Bench, gate: int, count: int, opened: asyncio.Event) -> None:
    """Read one stream to its end; say when its first item, which opens it, has come."""
    taken = -1
    async for _ in await bench.client.generate("gated_tokens", {"gate": gate, "count": count}):
        if taken < 0:
            opened.set()
        taken += 1
    if taken != count:
        raise RuntimeError(f"a stream of {count} items ended after {taken}")


async def sizes(bench: Bench) -> Figures:
    """Read one stream of `bytes` items after the other; a round moves the same amount at any size."""
    size = bench.params["x"]
    count = max(1, min(bench.params["bytes"] // size, bench.params["items_max"]))
    await _read_sized(bench, size, max(1, count // 8))
    moved, rates = 0, list[float]()
    end = perf_counter() + bench.params["seconds"]
    client_s, server_s = cpu_s(bench)
    while not rates or (perf_counter() < end and moved * size < bench.params["bytes_max"]):
        start = perf_counter()
        await _read_sized(bench, size, count)
        rates.append(count / (perf_counter() - start))
        moved += count
    client_after_s, server_after_s = cpu_s(bench)
    used_s = client_after_s - client_s + server_after_s - server_s
    return {
        "mb_per_s": median(rates) * size / 1e6,
        "us_per_item": 1e6 / median(rates),
        "cpu_us": used_s / moved * 1e6,
        "cpu_ms_per_mb": used_s * 1e3 / (moved * size / 1e6),
        "client_us": (client_after_s - client_s) / moved * 1e6,
        "server_us": (server_after_s - server_s) / moved * 1e6,
        "moved_mb": moved * size / 1e6,
    }


async def _read_sized(bench: Bench, size: int, count: int) -> None:
    """Read one stream of `count` items of `size` bytes."""
    taken = 0
    async for item in await bench.client.generate("sized_bytes", {"size": size, "count": count}):
        if len(item) != size:
            raise RuntimeError(f"an item of {size} bytes arrived with {len(item)}")
        taken += 1
    if taken != count:
        raise RuntimeError(f"a stream of {count} items ended after {taken}")


def cpu_s(bench: Bench) -> tuple[float, float]:
    """Return the CPU seconds used so far by this client and by all servers together.

    Read from the kernel and not through the arm, so that it may be read at any number of servers.
    """
    return time.process_time(), sum(process_cpu_s(server.pid) for server in bench.servers)
