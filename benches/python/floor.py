"""The floor: what careful pure Python reaches, which is what every claim is measured against.

A uvloop protocol on both sides, many streams on one TCP connection, a frame for each message or
item, and one write for all that one turn of the loop produced. It has no cancellation, no errors,
no flow control and no limits: it is the cost of moving items, not a transport to use.

    frame:  body length u32 | stream id u32 | kind u8 | body (msgpack)
"""

import asyncio
import inspect
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec

HEADER = struct.Struct("<IIB")
REQUEST, VALUE, ITEM, END = range(4)

# A greedy engine gives way to its neighbours after this many items. Measured: 128 moves large
# bursts of bytes 10 % faster and doubles the time to the first item of 64 streams.
ITEMS_PER_TURN = 64

# What one read takes at most, unless a larger frame is expected. Measured: 64 KiB costs a tenth.
READ_BYTES = 256 * 1024

# A part of this size is handed to the transport as it is; joining would copy it.
UNJOINED_BYTES = 64 * 1024

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


class Link(asyncio.BufferedProtocol):
    """One connection: gathers what a turn of the loop writes, and splits what arrives."""

    def __init__(self) -> None:
        """Start with nothing to write and nothing read."""
        self.loop = asyncio.get_running_loop()
        self.out: list[bytes] = []
        self._out_has_large = False
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._have_bytes = 0
        self._need_bytes = HEADER.size

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport and switch Nagle's algorithm off."""
        self.transport = cast(asyncio.Transport, transport)
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, stream_id: int, kind: int, body: bytes) -> None:
        """Queue one frame; the first of a turn schedules the write."""
        out = self.out
        if not out:
            self.loop.call_soon(self.flush)
        out.append(HEADER.pack(len(body), stream_id, kind))
        out.append(body)
        if len(body) > UNJOINED_BYTES:
            self._out_has_large = True

    def flush(self) -> None:
        """Write what has gathered."""
        out = self.out
        if self._out_has_large:
            self._out_has_large = False
            self.transport.writelines(out)
        else:
            self.transport.write(b"".join(out))
        out.clear()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Let the transport read behind what is there already."""
        return self._buffer[self._have_bytes :]

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on every whole frame, and keep the rest."""
        have = self._have_bytes = self._have_bytes + nbytes
        if have < self._need_bytes:
            return
        buffer = self._buffer
        # Slices of bytes are cheaper than slices of a memoryview, until there is much to copy.
        used = self.take_frames(bytes(buffer[:have]) if have <= READ_BYTES else buffer[:have])
        rest = self._have_bytes = have - used
        self._need_bytes = HEADER.size
        if rest >= HEADER.size:
            self._need_bytes += HEADER.unpack_from(buffer, used)[0]
        if self._need_bytes > len(buffer):
            self._buffer = memoryview(bytearray(self._need_bytes))
        if rest:
            self._buffer[:rest] = buffer[used:have]

    def take_frames(self, data: bytes | memoryview) -> int:
        """Handle each whole frame at the front of `data`; return how many bytes they took."""
        raise NotImplementedError


class ServerLink(Link):
    """Runs each request's engine in a task of its own, and writes what it answers."""

    def __init__(self, engines: Mapping[str, Callable[[Any], Any]]) -> None:
        """Learn from their kind which engines stream."""
        super().__init__()
        self._engines = {
            name: (engine, self._pump if inspect.isasyncgenfunction(engine) else self._answer)
            for name, engine in engines.items()
        }
        self._tasks: set[asyncio.Task[None]] = set()

    def take_frames(self, data: bytes | memoryview) -> int:
        """Start the engine that each request asks for."""
        offset, end = 0, len(data)
        while offset + HEADER.size <= end:
            length, stream_id, _ = HEADER.unpack_from(data, offset)
            start = offset + HEADER.size
            stop = start + length
            if stop > end:
                break
            endpoint, request = decode(data[start:stop])
            engine, drive = self._engines[endpoint]
            task = self.loop.create_task(drive(stream_id, engine(request)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            offset = stop
        return offset

    async def _answer(self, stream_id: int, call: Awaitable[Any]) -> None:
        self.send(stream_id, VALUE, encode(await call))

    async def _pump(self, stream_id: int, items: AsyncIterator[Any]) -> None:
        out, append, pack = self.out, self.out.append, HEADER.pack
        call_soon, flush = self.loop.call_soon, self.flush
        left = ITEMS_PER_TURN
        async for item in items:
            body = encode(item)
            if not out:
                call_soon(flush)
            append(pack(len(body), stream_id, ITEM))
            append(body)
            left -= 1
            if not left:
                left = ITEMS_PER_TURN
                await asyncio.sleep(0)
        self.send(stream_id, END, b"")


class Stream:
    """What has arrived of one answer and was not taken yet."""

    __slots__ = ("ended", "items", "take", "waiter")

    def __init__(self) -> None:
        """Start empty, with nobody waiting."""
        self.items: deque[Any] = deque()
        self.take: Callable[[Any], None] = self.items.append
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


class ClientLink(Link):
    """Sends requests, and sorts the answers to those who wait."""

    stream_type = Stream

    def __init__(self) -> None:
        """Start with no request in flight."""
        super().__init__()
        self._last_id = 0
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, Stream] = {}

    def call(self, endpoint: str, request: object) -> "asyncio.Future[Any]":
        """Send a request; the future gets the answer."""
        self._last_id += 1
        answer = self._calls[self._last_id] = self.loop.create_future()
        self.send(self._last_id, REQUEST, encode((endpoint, request)))
        return answer

    async def generate(self, endpoint: str, request: object) -> AsyncIterator[Any]:
        """Send a request; the iterator yields the items of the answer."""
        self._last_id += 1
        stream = self._streams[self._last_id] = self.stream_type()
        self.send(self._last_id, REQUEST, encode((endpoint, request)))
        return stream.read()

    def take_frames(self, data: bytes | memoryview) -> int:
        """Give each value to its call, each item to its stream."""
        offset, end, header_bytes = 0, len(data), HEADER.size
        unpack, calls, streams = HEADER.unpack_from, self._calls, self._streams
        while offset + header_bytes <= end:
            length, stream_id, kind = unpack(data, offset)
            start = offset + header_bytes
            stop = start + length
            if stop > end:
                break
            offset = stop
            if kind == VALUE:
                calls.pop(stream_id).set_result(decode(data[start:stop]))
                continue
            stream = streams[stream_id]
            if kind == ITEM:
                stream.take(decode(data[start:stop]))
            else:
                del streams[stream_id]
                stream.ended = True
            if stream.waiter is not None:
                stream.waiter.set_result(None)
                stream.waiter = None
        return offset


@asynccontextmanager
async def serve(
    engines: Mapping[str, Callable[[Any], Any]], link: type[ServerLink] = ServerLink
) -> AsyncIterator[str]:
    """Serve on a free loopback port while entered; gives the address."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: link(engines), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    yield f"{host}:{port}"
    server.close()


@asynccontextmanager
async def connect(address: str, link: type[ClientLink] = ClientLink) -> AsyncIterator[ClientLink]:
    """Stay connected to a serving process while entered."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_connection(link, host, int(port))
    yield client
    transport.close()
