"""ZeroMQ between a DEALER and a ROUTER on pyzmq's asyncio sockets, one message for each item.

A message is a msgpack array `(id, kind, value)`. High-water marks are off on both sides, as a ROUTER
drops what goes beyond its own; memory is then without a bound. Large messages are sent and received
without a copy, small ones copied, as pyzmq's documentation advises. TCP, since it is what reaches
another host; ZeroMQ switches Nagle's algorithm off itself.

ZeroMQ reconnects by itself and says nothing of a lost peer, and knows no calls to cancel: both would
be a protocol of one's own, so this arm has neither.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import zmq
import zmq.asyncio

VALUE, ITEM, END = range(3)

# `send` does not give way while its queue takes more, so a greedy engine has to: as the floor does.
ITEMS_PER_TURN = 64

# From here on a copy costs more than the bookkeeping that avoids it; pyzmq's own threshold.
UNCOPIED_BYTES = 64 * 1024

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


class Service:
    """Runs each request's engine in a task of its own."""

    def __init__(self, socket: Any, engines: Mapping[str, Callable[[Any], Any]]) -> None:
        """Learn from their kind which engines stream."""
        self.socket = socket
        self._engines = {
            name: (engine, self._pump if inspect.isasyncgenfunction(engine) else self._answer)
            for name, engine in engines.items()
        }
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self) -> None:
        """Start the engine that each request asks for."""
        while True:
            peer, message = await self.socket.recv_multipart(copy=False)
            stream_id, endpoint, request = decode(message.buffer)
            engine, drive = self._engines[endpoint]
            task = asyncio.create_task(drive(peer.bytes, stream_id, engine(request)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def send(self, peer: bytes, stream_id: int, kind: int, value: object) -> Awaitable[object]:
        """Send one message."""
        message = encode((stream_id, kind, value))
        return self.socket.send_multipart((peer, message), copy=len(message) < UNCOPIED_BYTES)

    async def _answer(self, peer: bytes, stream_id: int, call: Awaitable[Any]) -> None:
        await self.send(peer, stream_id, VALUE, await call)

    async def _pump(self, peer: bytes, stream_id: int, items: AsyncIterator[Any]) -> None:
        left = ITEMS_PER_TURN
        async for item in items:
            await self.send(peer, stream_id, ITEM, item)
            left -= 1
            if not left:
                left = ITEMS_PER_TURN
                await asyncio.sleep(0)
        await self.send(peer, stream_id, END, None)


class Stream:
    """What has arrived of one answer and was not taken yet."""

    __slots__ = ("ended", "items", "waiter")

    def __init__(self) -> None:
        """Start empty, with nobody waiting."""
        self.items: deque[Any] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.ended = False

    async def read(self) -> AsyncIterator[Any]:
        """Yield items as they arrive, to the end."""
        items, create_future = self.items, asyncio.get_running_loop().create_future
        while True:
            while items:
                yield items.popleft()
            if self.ended:
                return
            self.waiter = create_future()
            await self.waiter


class Client:
    """Sends requests, and sorts the answers to those who wait."""

    def __init__(self, socket: Any) -> None:
        """Start with no request in flight."""
        self.socket = socket
        self._loop = asyncio.get_running_loop()
        self._last_id = 0
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, Stream] = {}

    async def call(self, endpoint: str, request: object) -> Any:
        """Send a request and wait for its answer."""
        self._last_id += 1
        answer = self._calls[self._last_id] = self._loop.create_future()
        await self._send(endpoint, request)
        return await answer

    async def generate(self, endpoint: str, request: object) -> AsyncIterator[Any]:
        """Send a request; the iterator yields the items of the answer."""
        self._last_id += 1
        stream = self._streams[self._last_id] = Stream()
        await self._send(endpoint, request)
        return stream.read()

    async def take(self) -> None:
        """Read messages for ever."""
        while True:
            self.sort(decode((await self.socket.recv(copy=False)).buffer))

    def sort(self, message: Any) -> None:
        """Give a value to its call, an item to its stream."""
        stream_id, kind, value = message
        if kind == VALUE:
            self._calls.pop(stream_id).set_result(value)
            return
        if kind == ITEM:
            stream = self._streams[stream_id]
            stream.items.append(value)
        else:
            stream = self._streams.pop(stream_id)
            stream.ended = True
        if stream.waiter is not None:
            stream.waiter.set_result(None)
            stream.waiter = None

    def _send(self, endpoint: str, request: object) -> Awaitable[object]:
        message = encode((self._last_id, endpoint, request))
        return self.socket.send(message, copy=len(message) < UNCOPIED_BYTES)


def _socket(kind: int) -> Any:
    """Return a socket that queues without a bound, and leaves at once."""
    socket = zmq.asyncio.Context.instance().socket(kind)
    socket.set_hwm(0)
    socket.linger = 0
    return socket


@asynccontextmanager
async def serve(
    engines: Mapping[str, Callable[[Any], Any]], service: type[Service] = Service
) -> AsyncIterator[str]:
    """Serve on a free loopback port while entered; gives the address."""
    with _socket(zmq.ROUTER) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        taking = asyncio.create_task(service(socket, engines).take())
        yield f"127.0.0.1:{port}"
        taking.cancel()


@asynccontextmanager
async def connect(address: str, client: type[Client] = Client) -> AsyncIterator[Client]:
    """Stay connected to a serving process while entered."""
    with _socket(zmq.DEALER) as socket:
        socket.connect(f"tcp://{address}")
        connected = client(socket)
        taking = asyncio.create_task(connected.take())
        yield connected
        taking.cancel()
