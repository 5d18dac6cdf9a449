"""The floor once more, with one frame for all the items that a stream yielded in one turn.

Each item is still encoded when it is yielded. The frame's body is a msgpack array of them, which
the client decodes in one call. Bursts gain by it, single items lose a little, so the plain floor
stays the reference, and this arm shows what pure Python can still reach where items come in bursts.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import floor

# msgpack's array of up to 2^32 - 1 elements: 0xdd and the count.
ARRAY = struct.Struct(">BI")


class ServerLink(floor.ServerLink):
    """Gathers items per stream, and frames them at the end of the turn."""

    def __init__(self, engines: Mapping[str, Callable[[Any], Any]]) -> None:
        """Start with no burst to frame."""
        super().__init__(engines)
        self._bursts: list[tuple[int, list[bytes]]] = []

    def flush(self) -> None:
        """Frame the bursts behind what has gathered, and write."""
        out = self.out
        for stream_id, items in self._bursts:
            if items:
                self._frame(stream_id, items)
        self._bursts.clear()
        if out:
            super().flush()

    def _frame(self, stream_id: int, items: list[bytes]) -> None:
        body = ARRAY.pack(0xDD, len(items)) + b"".join(items)
        self.out.append(floor.HEADER.pack(len(body), stream_id, floor.ITEM))
        self.out.append(body)
        items.clear()

    async def _pump(self, stream_id: int, items: AsyncIterator[Any]) -> None:
        burst: list[bytes] = []
        append, bursts = burst.append, self._bursts
        left = floor.ITEMS_PER_TURN
        async for item in items:
            body = floor.encode(item)
            if not burst:
                if not bursts:
                    self.loop.call_soon(self.flush)
                bursts.append((stream_id, burst))
            append(body)
            left -= 1
            if not left:
                left = floor.ITEMS_PER_TURN
                await asyncio.sleep(0)
        if not self.out:
            self.loop.call_soon(self.flush)
        if burst:
            self._frame(stream_id, burst)
        self.out.append(floor.HEADER.pack(0, stream_id, floor.END))


class Stream(floor.Stream):
    """Takes a burst at a time."""

    __slots__ = ()

    def __init__(self) -> None:
        """Start empty, with nobody waiting."""
        super().__init__()
        self.take = self.items.extend


class ClientLink(floor.ClientLink):
    """Sorts bursts to their streams."""

    stream_type = Stream


def serve(engines: Mapping[str, Callable[[Any], Any]]) -> AbstractAsyncContextManager[str]:
    """Serve on a free loopback port while entered; gives the address."""
    return floor.serve(engines, ServerLink)


def connect(address: str) -> AbstractAsyncContextManager[floor.ClientLink]:
    """Stay connected to a serving process while entered."""
    return floor.connect(address, ClientLink)
