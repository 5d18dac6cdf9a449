"""Streaming loads: one fast stream (S3), many fast ones (S4), many slow ones (S5)."""

import asyncio
from statistics import median
from time import perf_counter

from bench import Bench, Figures, cpu_figures, percentile
from engines import PERIOD_S

# How long slow streams flow before the measured window opens, and after it closes.
SETTLE_S = 0.5


async def one_stream(bench: Bench) -> Figures:
    """Read one stream to its end, several times; the rate includes opening and ending it."""
    count, rates = bench.params["items"], []
    request = {"kind": bench.params["kind"], "count": count}
    await _read(bench, request)
    before = await bench.cpu_s()
    for _ in range(bench.params["streams"]):
        start = perf_counter()
        await _read(bench, request)
        rates.append(count / (perf_counter() - start))
    after = await bench.cpu_s()
    return {"items_per_s": median(rates), **cpu_figures(before, after)}


async def many_streams(bench: Bench) -> Figures:
    """Read many streams at once, several times, and time each one's first item."""
    count, width = bench.params["items"], bench.params["streams"]
    request = {"kind": "dict", "count": count}
    await asyncio.gather(*(_read(bench, request) for _ in range(width)))
    rates: list[float] = []
    first_ms: list[float] = []
    before = await bench.cpu_s()
    for _ in range(bench.params["rounds"]):
        start = perf_counter()
        firsts_s = await asyncio.gather(*(_read(bench, request) for _ in range(width)))
        rates.append(width * count / (perf_counter() - start))
        first_ms.extend(first_s * 1000 for first_s in firsts_s)
    after = await bench.cpu_s()
    return {
        "items_per_s": median(rates),
        "first_p50_ms": percentile(first_ms, 50),
        "first_p99_ms": percentile(first_ms, 99),
        **cpu_figures(before, after),
    }


async def paced_streams(bench: Bench) -> Figures:
    """Read many streams that yield every 20 ms, and weigh a window in their middle."""
    width, window_s = bench.params["streams"], bench.params["window_s"]
    count = round((2 * SETTLE_S + window_s) / PERIOD_S) + 1
    taken = 0

    async def reader(index: int) -> None:
        nonlocal taken
        request = {
            "count": count,
            "together": bench.params["together"],
            "offset_s": index * PERIOD_S / width,
        }
        async for _ in await bench.client.generate("paced", request):
            taken += 1

    readers = [asyncio.create_task(reader(index)) for index in range(width)]
    await asyncio.sleep(SETTLE_S)
    before, taken_before = await bench.cpu_s(), taken
    await asyncio.sleep(window_s)
    after, taken_after = await bench.cpu_s(), taken
    await asyncio.gather(*readers)
    if taken != width * count:
        raise RuntimeError(f"{width} streams of {count} items gave {taken} items")
    used = cpu_figures(before, after)
    items = taken_after - taken_before
    return {
        "cpu_us_per_item": (used["client_cpu_s"] + used["server_cpu_s"]) / items * 1e6,
        "items": items,
        **used,
    }


async def _read(bench: Bench, request: dict[str, object]) -> float:
    """Read one stream of tokens to its end; return the seconds to its first item."""
    start, first_s, taken = perf_counter(), 0.0, 0
    async for _ in await bench.client.generate("tokens", request):
        if not taken:
            first_s = perf_counter() - start
        taken += 1
    if taken != request["count"]:
        raise RuntimeError(f"a stream of {request['count']} items ended after {taken}")
    return first_s
