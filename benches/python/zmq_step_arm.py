"""ZeroMQ once more, with all that a turn of the server's loop produced in one message.

This is how vLLM moves the outputs of an engine step: they are gathered over all requests, encoded in
one call and sent as one message. An item is therefore encoded at the end of its turn, not when it is
yielded, and an engine must not reuse it meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import zmq_item_arm


class Service(zmq_item_arm.Service):
    """Gathers messages for each peer, and sends them at the end of the turn."""

    def __init__(self, socket: Any, engines: Mapping[str, Callable[[Any], Any]]) -> None:
        """Start with nothing gathered."""
        super().__init__(socket, engines)
        self._loop = asyncio.get_running_loop()
        self._gathered: dict[bytes, list[tuple[int, int, object]]] = {}

    def gather(self, peer: bytes, stream_id: int, kind: int, value: object) -> None:
        """Add one message; the first of a turn schedules the sending."""
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered.setdefault(peer, []).append((stream_id, kind, value))

    def _flush(self) -> None:
        for peer, messages in self._gathered.items():
            together = zmq_item_arm.encode(messages)
            # Not awaited: with no high-water mark it is queued at once, and in order.
            self.socket.send_multipart((peer, together), copy=len(together) < zmq_item_arm.UNCOPIED_BYTES)
        self._gathered.clear()

    async def _answer(self, peer: bytes, stream_id: int, call: Awaitable[Any]) -> None:
        self.gather(peer, stream_id, zmq_item_arm.VALUE, await call)

    async def _pump(self, peer: bytes, stream_id: int, items: AsyncIterator[Any]) -> None:
        left = zmq_item_arm.ITEMS_PER_TURN
        async for item in items:
            self.gather(peer, stream_id, zmq_item_arm.ITEM, item)
            left -= 1
            if not left:
                left = zmq_item_arm.ITEMS_PER_TURN
                await asyncio.sleep(0)
        self.gather(peer, stream_id, zmq_item_arm.END, None)


class Client(zmq_item_arm.Client):
    """Sorts a turn's messages one by one."""

    def sort(self, message: Any) -> None:
        """Give each of a turn's messages to whom it is for."""
        for one in message:
            super().sort(one)


def serve(engines: Mapping[str, Callable[[Any], Any]]) -> AbstractAsyncContextManager[str]:
    """Serve on a free loopback port while entered; gives the address."""
    return zmq_item_arm.serve(engines, Service)


def connect(address: str) -> AbstractAsyncContextManager[zmq_item_arm.Client]:
    """Stay connected to a serving process while entered."""
    return zmq_item_arm.connect(address, Client)
