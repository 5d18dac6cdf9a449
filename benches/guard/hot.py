"""The hot loops of the Python package, to be counted: `hot.py CASE COUNT`.

Worker and router share one process and one loop, so that no scheduler decides who runs when, and a Unix
socket, which delivers at once what is written. `guard.py` runs this under callgrind.
"""

import asyncio
import gc
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import headrace as hr
import uvloop

TOKEN_BYTES = bytes(range(64))
IN_FLIGHT = 64
# Items of one stream that nobody reads: they fit its window.
UNREAD_ITEMS = 2_000

_ended = asyncio.Event()


async def echo(request: bytes) -> bytes:
    """Return the request."""
    return request


async def dicts(count: int) -> AsyncIterator[Any]:
    """Yield so many token-sized dictionaries."""
    for i in range(count):
        yield {"token_ids": [i], "text": " hi"}


async def opaque(count: int) -> AsyncIterator[bytes]:
    """Yield so many times the same bytes, and say when all are pushed."""
    for _ in range(count):
        yield TOKEN_BYTES
    _ended.set()


async def taken(items: AsyncIterator[bytes]) -> int:
    """Count the items of a request stream."""
    count = 0
    async for _ in items:
        count += 1
    return count


async def stream_dicts(router: hr.Router, count: int) -> None:
    """Read one stream of dictionaries: push, write, read, `__anext__`."""
    await _read(router, "dicts", count)


async def stream_bytes(router: hr.Router, count: int) -> None:
    """Read one stream of bytes: the same without the codec."""
    await _read(router, "opaque", count)


async def unread(router: hr.Router, count: int) -> None:
    """Open streams and read nothing: what is left of `stream_bytes` without `__anext__`."""
    for _ in range(count // UNREAD_ITEMS):
        stream = await router.generate(UNREAD_ITEMS, endpoint="opaque")
        await _ended.wait()
        _ended.clear()
        await stream.aclose()


async def requests(router: hr.Router, count: int) -> None:
    """Send one request stream of bytes: the same as `stream_bytes`, the other way."""
    taken = await router.call(opaque(count), endpoint="taken")
    if taken != count:
        raise RuntimeError(f"a request of {count} items ended after {taken}")


async def calls(router: hr.Router, count: int) -> None:
    """Call one after the other."""
    for _ in range(count):
        await router.call(TOKEN_BYTES, endpoint="echo")


async def calls_together(router: hr.Router, count: int) -> None:
    """Call from many tasks at once."""
    await asyncio.gather(*(calls(router, count // IN_FLIGHT) for _ in range(IN_FLIGHT)))


async def _read(router: hr.Router, endpoint: str, count: int) -> None:
    taken = 0
    async for _ in await router.generate(count, endpoint=endpoint):
        taken += 1
    if taken != count:
        raise RuntimeError(f"a stream of {count} items ended after {taken}")


CASES: dict[str, Callable[[hr.Router, int], Awaitable[None]]] = {
    case.__name__.replace("_", "-"): case
    for case in (stream_dicts, stream_bytes, unread, requests, calls, calls_together)
}


async def main(case: str, count: int) -> None:
    """Connect, warm up, and run the case."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{Path(folder, 'hot')}"
        engines = {"echo": echo, "dicts": dicts, "opaque": opaque, "taken": taken}
        async with hr.serve(engines, address, concurrency=2 * IN_FLIGHT), hr.Router(address) as router:
            await router.call(TOKEN_BYTES, endpoint="echo")
            gc.collect()
            gc.disable()
            await CASES[case](router, count)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
