"""The engines that only `scale.py` and `syscalls.py` load, served beside those of `engines.py`.

A group of streams opens first, each with one item, and begins only when its gate is opened, so that
neither opening streams nor starting readers is within what is measured.
"""

import asyncio
import gc
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import usage as process_usage

# Nothing more was pushed for this long: the engines have run as far ahead as they may.
SETTLED_S = 0.2
SETTLED_TIMEOUT_S = 5.0

_gates: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
_pushed = 0


async def gated_tokens(request: dict[str, Any]) -> AsyncIterator[Any]:
    """Yield one item, wait for the gate, and yield `count` tokens as fast as they are taken."""
    yield b"open"
    await _gates[request["gate"]].wait()
    for i in range(request["count"]):
        yield {"token_ids": [i], "text": " hi"}


async def open_gate(request: dict[str, Any]) -> None:
    """Let the streams of a gate begin."""
    _gates.pop(request["gate"]).set()


async def sized_bytes(request: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yield `count` items of `size` bytes."""
    item = bytes(request["size"])
    for _ in range(request["count"]):
        yield item


async def unread_tokens(request: dict[str, Any]) -> AsyncIterator[Any]:
    """Yield one item, wait for the gate, push `count` tokens, and never end."""
    global _pushed
    yield b"open"
    await _gates[request["gate"]].wait()
    for i in range(request["count"]):
        yield {"token_ids": [i], "text": " hi"}
        _pushed += 1
    await asyncio.get_running_loop().create_future()


async def settled(request: dict[str, Any]) -> dict[str, float]:
    """Open a gate after `delay_s`; when nothing moves any more, return what was pushed and used."""
    await asyncio.sleep(request["delay_s"])
    _gates.pop(request["gate"]).set()
    loop = asyncio.get_running_loop()
    start_s, seen = loop.time(), -1
    while seen != _pushed and loop.time() - start_s < SETTLED_TIMEOUT_S:
        seen = _pushed
        await asyncio.sleep(SETTLED_S)
    gc.collect()
    return {"pushed": _pushed, **process_usage.read()}


SCALE_ENGINES: Mapping[str, Callable[[Any], Any]] = {
    engine.__name__: engine for engine in (gated_tokens, open_gate, sized_bytes, unread_tokens, settled)
}
