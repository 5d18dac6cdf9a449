"""The engines that every arm serves, so that arms differ in transport and in nothing else.

An engine takes the request alone and is a coroutine function (unary) or an async generator
function (streaming). `usage` and `cancelled_at` are the harness's own way to ask the serving
process something; they travel through the arm like any other call.
"""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import usage as process_usage

PERIOD_S = 0.02
TOKEN_BYTES = bytes(range(64))

_cancelled_at_ns: dict[int, asyncio.Future[int]] = {}
_tick: asyncio.Event | None = None
_ticker: asyncio.Task[None] | None = None


async def unary_echo(request: bytes) -> bytes:
    """Return the request: 64 bytes in S1 and S2."""
    return request


async def echo_mib(request: bytes) -> bytes:
    """Return the request: 1 MiB in S6. Apart from `unary_echo` so that logs tell them apart."""
    return request


async def tokens(request: dict[str, Any]) -> AsyncIterator[Any]:
    """Yield `count` token-sized items as fast as they are taken, and never await."""
    if request["kind"] == "bytes":
        for _ in range(request["count"]):
            yield TOKEN_BYTES
    else:
        for i in range(request["count"]):
            yield {"token_ids": [i], "text": " hi"}


async def paced(request: dict[str, Any]) -> AsyncIterator[Any]:
    """Yield `count` tokens `PERIOD_S` apart: each on its own timer, or all on one shared tick."""
    if request["together"]:
        tick = _shared_tick()
        for i in range(request["count"]):
            await tick.wait()
            yield {"token_ids": [i], "text": " hi"}
    else:
        # Towards fixed times: were each sleep a whole period, streams that one stall has held up together
        # would stay together, and cost less, for good.
        loop = asyncio.get_running_loop()
        next_at = loop.time() + request["offset_s"]
        for i in range(request["count"]):
            await asyncio.sleep(max(0.0, next_at - loop.time()))
            yield {"token_ids": [i], "text": " hi"}
            next_at += PERIOD_S


async def never_ending(request: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yield one item, then wait for ever; note when the wait is cancelled."""
    loop = asyncio.get_running_loop()
    yield b"open"
    try:
        await loop.create_future()
    except asyncio.CancelledError:
        seen = _cancellation(request["id"])
        if not seen.done():
            seen.set_result(time.monotonic_ns())
        raise


async def cancelled_at(request: dict[str, Any]) -> int:
    """Return the CLOCK_MONOTONIC time at which `never_ending` with this id was cancelled."""
    return await asyncio.wait_for(_cancellation(request["id"]), timeout=10)


async def usage(request: bytes) -> dict[str, float]:
    """Return what the serving process has used so far."""
    return process_usage.read()


async def collected_usage(request: bytes) -> dict[str, float]:
    """Return what the serving process has used, with its garbage gone."""
    gc.collect()
    return process_usage.read()


def _cancellation(request_id: int) -> "asyncio.Future[int]":
    """Return the future that holds the cancellation time of one `never_ending` request."""
    if request_id not in _cancelled_at_ns:
        _cancelled_at_ns[request_id] = asyncio.get_running_loop().create_future()
    return _cancelled_at_ns[request_id]


def _shared_tick() -> asyncio.Event:
    """Return this process's tick, starting its ticker on first use."""
    global _tick, _ticker
    if _tick is None:
        _tick = asyncio.Event()
        _ticker = asyncio.create_task(_run_ticker(_tick))
    return _tick


async def _run_ticker(tick: asyncio.Event) -> None:
    """Release everyone who waits on the tick, every `PERIOD_S`."""
    while True:
        await asyncio.sleep(PERIOD_S)
        tick.set()
        tick.clear()


ENGINES: Mapping[str, Callable[[Any], Any]] = {
    engine.__name__: engine
    for engine in (
        unary_echo,
        echo_mib,
        tokens,
        paced,
        never_ending,
        cancelled_at,
        usage,
        collected_usage,
    )
}
