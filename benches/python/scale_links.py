"""Scale loads over more and more links: calls to many workers or of many clients, and idle links."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from time import perf_counter, perf_counter_ns

import usage
from arms import ARMS
from bench import Bench, Figures, percentile
from scale_items import cpu_s

# How many links are opened at once: some arms bound how many may be shaking hands.
WAVE = 16

# A link that has been silent for this long is idle, and ticks slowly if it ticks at all.
QUIET_S = 1.3
WATCHED_S = 1.0

SMALL = bytes(range(64))


async def calls(bench: Bench) -> Figures:
    """Keep callers calling with 64 bytes for a while; count, and time every call."""
    took_us: list[float] = []
    call = bench.client.call

    async def caller(until: float) -> None:
        while (start := perf_counter_ns()) < until:
            await call("unary_echo", SMALL)
            took_us.append((perf_counter_ns() - start) / 1000)

    in_flight = max(1, bench.params["in_flight"] // bench.params.get("clients", 1))
    await _callers(caller, in_flight, bench.params["warm_up_s"])
    warm_up_calls = len(took_us)
    took_us.clear()
    client_s, server_s = cpu_s(bench)
    start = perf_counter()
    await _callers(caller, in_flight, bench.params["seconds"])
    took_s = perf_counter() - start
    client_after_s, server_after_s = cpu_s(bench)
    return {
        "calls": len(took_us),
        "calls_in_all": warm_up_calls + len(took_us),
        "requests_per_s": len(took_us) / took_s,
        "client_us": (client_after_s - client_s) / len(took_us) * 1e6,
        "server_us": (server_after_s - server_s) / len(took_us) * 1e6,
        "p50_us": percentile(took_us, 50),
        "p99_us": percentile(took_us, 99),
    }


async def _callers(caller: Callable[[float], Awaitable[None]], count: int, seconds: float) -> None:
    """Run `count` callers until the time is up."""
    until = perf_counter_ns() + seconds * 1e9
    await asyncio.gather(*(caller(until) for _ in range(count)))


async def idle_links(bench: Bench) -> Figures:
    """Connect a number of clients, weigh both processes, and watch what idleness costs."""
    arm = ARMS[bench.params["arm"]].load()
    count = bench.params["x"]
    async with AsyncExitStack() as stack:

        async def connect() -> None:
            client = await stack.enter_async_context(arm.connect(bench.servers[0].address))
            await client.call("unary_echo", SMALL)

        await asyncio.gather(*(connect() for _ in range(WAVE)))
        before = await anonymous_kib(bench)
        start = perf_counter()
        for first in range(0, count, WAVE):
            await asyncio.gather(*(connect() for _ in range(min(WAVE, count - first))))
        connect_s = perf_counter() - start
        after = await anonymous_kib(bench)
        idle = await idle_cpu(bench)
    return {
        "client_kib": (after[0] - before[0]) / count,
        "server_kib": (after[1] - before[1]) / count,
        "connect_us": connect_s / count * 1e6,
        **idle,
    }


async def anonymous_kib(bench: Bench) -> tuple[float, float]:
    """Return the memory of client and server after a collection."""
    gc.collect()
    server = await bench.client.call("collected_usage", b"")
    return usage.read()["anonymous_kib"], server["anonymous_kib"]


async def idle_cpu(bench: Bench) -> Figures:
    """Do nothing for a while; return the CPU that this takes of both sides, in ms each second."""
    await asyncio.sleep(QUIET_S)
    client_s, server_s = cpu_s(bench)
    await asyncio.sleep(WATCHED_S)
    client_after_s, server_after_s = cpu_s(bench)
    return {
        "client_idle_ms": (client_after_s - client_s) * 1e3 / WATCHED_S,
        "server_idle_ms": (server_after_s - server_s) * 1e3 / WATCHED_S,
    }
