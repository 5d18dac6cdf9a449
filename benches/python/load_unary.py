"""Unary loads: one call in flight (S1), many (S2), and large ones (S6)."""

import asyncio
from time import perf_counter, perf_counter_ns

from bench import Bench, Figures, cpu_figures, percentile

SMALL = bytes(range(64))
MIB = bytes(1024 * 1024)


async def one_in_flight(bench: Bench) -> Figures:
    """Call again and again with 64 bytes, and time every call."""
    call = bench.client.call
    for _ in range(bench.params["warm_up"]):
        await call("unary_echo", SMALL)
    before = await bench.cpu_s()
    took_us: list[float] = []
    for _ in range(bench.params["calls"]):
        start = perf_counter_ns()
        await call("unary_echo", SMALL)
        took_us.append((perf_counter_ns() - start) / 1000)
    after = await bench.cpu_s()
    return {
        "p50_us": percentile(took_us, 50),
        "p99_us": percentile(took_us, 99),
        **cpu_figures(before, after),
    }


async def many_in_flight(bench: Bench) -> Figures:
    """Keep a number of callers calling with 64 bytes, and count what they get done."""
    call = bench.client.call
    in_flight, calls = bench.params["in_flight"], bench.params["calls_each"]

    async def caller(count: int) -> None:
        for _ in range(count):
            await call("unary_echo", SMALL)

    await asyncio.gather(*(caller(bench.params["warm_up"]) for _ in range(in_flight)))
    before = await bench.cpu_s()
    start = perf_counter()
    await asyncio.gather(*(caller(calls) for _ in range(in_flight)))
    took_s = perf_counter() - start
    after = await bench.cpu_s()
    return {"requests_per_s": in_flight * calls / took_s, **cpu_figures(before, after)}


async def large_echo(bench: Bench) -> Figures:
    """Echo 1 MiB again and again; an echo counts its payload once, though it travels twice."""
    call = bench.client.call
    for _ in range(bench.params["warm_up"]):
        await call("echo_mib", MIB)
    before = await bench.cpu_s()
    start = perf_counter()
    for _ in range(bench.params["calls"]):
        answer = await call("echo_mib", MIB)
        if len(answer) != len(MIB):
            raise RuntimeError(f"sent {len(MIB)} bytes, got {len(answer)} back")
    took_s = perf_counter() - start
    after = await bench.cpu_s()
    moved_mb = bench.params["calls"] * len(MIB) / 1e6
    return {"mb_per_s": moved_mb / took_s, **cpu_figures(before, after)}
