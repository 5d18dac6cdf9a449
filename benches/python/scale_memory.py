"""Scale loads that hold: streams on which nothing happens, and items that nobody takes.

Memory is `RssAnon` of each process after a collection. What the kernel holds in socket buffers is in
neither process.
"""

import asyncio
import os
import signal
from time import perf_counter
from typing import Any

import usage
from bench import Bench, Figures
from scale_links import anonymous_kib, idle_cpu

# How many streams are opened at once.
WAVE = 100

# How long a stopped client stays stopped, and when in that time its items begin.
STOPPED_S = 2.0
BEGIN_AFTER_S = 0.3

# Opened before anything is weighed.
WARM_UP = 200


async def idle_streams(bench: Bench) -> Figures:
    """Open a number of streams, weigh both processes, and watch what idleness costs."""
    held = await _open(bench, "never_ending", range(WARM_UP))
    before = await anonymous_kib(bench)
    count = bench.params["x"]
    start = perf_counter()
    held += await _open(bench, "never_ending", range(WARM_UP, WARM_UP + count))
    open_s = perf_counter() - start
    after = await anonymous_kib(bench)
    return {
        "client_kib": (after[0] - before[0]) / count,
        "server_kib": (after[1] - before[1]) / count,
        "open_us": open_s / count * 1e6,
        "open_all_ms": open_s * 1e3,
        **await idle_cpu(bench),
    }


async def unread(bench: Bench) -> Figures:
    """Leave items unread: the client goes on reading its connection, and nobody takes the items."""
    held = await _open_unread(bench)
    before = await anonymous_kib(bench)
    after = await bench.client.call("settled", {"gate": 0, "delay_s": 0.0})
    figures = _held_by_items(bench, before, after)
    del held
    return figures


async def stopped(bench: Bench) -> Figures:
    """The same while this whole process is stopped, so that not even its connection is read."""
    held = await _open_unread(bench)
    before = await anonymous_kib(bench)
    answer = asyncio.ensure_future(bench.client.call("settled", {"gate": 0, "delay_s": BEGIN_AFTER_S}))
    # The request has to leave before this process stops.
    await asyncio.sleep(BEGIN_AFTER_S / 3)
    pid = os.getpid()
    waker = await asyncio.create_subprocess_exec("/bin/sh", "-c", f"sleep {STOPPED_S}; kill -CONT {pid}")
    os.kill(pid, signal.SIGSTOP)
    await waker.wait()
    figures = _held_by_items(bench, before, await answer)
    del held
    return figures


def _held_by_items(bench: Bench, before: tuple[float, float], after: dict[str, float]) -> Figures:
    """Return what the items that were pushed take on each side."""
    pushed = after["pushed"]
    return {
        "pushed": pushed,
        "pushed_share": pushed / (bench.params["x"] * bench.params["items"]),
        "client_bytes": (usage.read()["anonymous_kib"] - before[0]) * 1024 / pushed,
        "server_bytes": (after["anonymous_kib"] - before[1]) * 1024 / pushed,
        "server_kib": after["anonymous_kib"] - before[1],
    }


async def _open_unread(bench: Bench) -> list[object]:
    """Open the streams whose items nobody will take."""
    request = {"gate": 0, "count": bench.params["items"]}
    return [await _open_one(bench, "unread_tokens", request) for _ in range(bench.params["x"])]


async def _open(bench: Bench, endpoint: str, ids: range) -> list[object]:
    """Open one stream for each id, a wave at a time."""
    held: list[object] = []
    for first in range(ids.start, ids.stop, WAVE):
        wave = range(first, min(first + WAVE, ids.stop))
        held += await asyncio.gather(*(_open_one(bench, endpoint, {"id": index}) for index in wave))
    return held


async def _open_one(bench: Bench, endpoint: str, request: dict[str, Any]) -> object:
    """Open a stream and take its first item; return what keeps it open."""
    stream = await bench.client.generate(endpoint, request)
    iterator = aiter(stream)
    await anext(iterator)
    return stream, iterator
