"""asyncio's own streams, as a careful user would write an RPC on them, in an afternoon.

One connection carries all calls of a client, since a connection for each call would add a handshake
to every unary call. A frame is a length and a msgpack array `(id, kind, value)`; each item is one
`write` and one `drain`, which is the documented way to let a slow reader hold the writer back. Both
sides raise the reader's limit, or a message of 1 MiB would be read in 128 KiB portions.

A lost connection raises in every call and stream that waits. There is no cancellation: it would need
a frame of its own and a table of tasks, which is where such code starts to become a library.
"""

import asyncio
import inspect
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

LENGTH = struct.Struct("<I")
REQUEST, VALUE, ITEM, END = range(4)
LIMIT_BYTES = 4 * 1024 * 1024

# `drain` does not give way while there is room to write, so a greedy engine has to: as the floor does.
ITEMS_PER_TURN = 64

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, int, Any]:
    """Return the next frame; an end of the connection raises."""
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    stream_id, kind, value = decode(await reader.readexactly(length))
    return stream_id, kind, value


def write_frame(writer: asyncio.StreamWriter, stream_id: int, kind: int, value: object) -> None:
    """Write one frame, whole: Nagle's algorithm is off, and two writes would be two packets."""
    body = encode((stream_id, kind, value))
    writer.write(LENGTH.pack(len(body)) + body)


def without_delay(writer: asyncio.StreamWriter) -> None:
    """Switch Nagle's algorithm off."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Service:
    """Runs each request's engine in a task of its own."""

    def __init__(self, engines: Mapping[str, Callable[[Any], Any]]) -> None:
        """Learn from their kind which engines stream."""
        self._engines = {
            name: (engine, self._pump if inspect.isasyncgenfunction(engine) else self._answer)
            for name, engine in engines.items()
        }
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read requests until the client is gone."""
        without_delay(writer)
        try:
            while True:
                stream_id, _, (endpoint, request) = await read_frame(reader)
                engine, drive = self._engines[endpoint]
                task = asyncio.create_task(drive(writer, stream_id, engine(request)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, stream_id: int, call: Any) -> None:
        write_frame(writer, stream_id, VALUE, await call)
        await writer.drain()

    async def _pump(self, writer: asyncio.StreamWriter, stream_id: int, items: Any) -> None:
        left = ITEMS_PER_TURN
        async for item in items:
            write_frame(writer, stream_id, ITEM, item)
            await writer.drain()
            left -= 1
            if not left:
                left = ITEMS_PER_TURN
                await asyncio.sleep(0)
        write_frame(writer, stream_id, END, None)
        await writer.drain()


class Client:
    """Sends requests, and sorts what comes back by its id."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take over a connection."""
        self._reader = reader
        self._writer = writer
        self._last_id = 0
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, asyncio.Queue[tuple[int, Any]]] = {}

    async def call(self, endpoint: str, request: object) -> Any:
        """Send a request and wait for its answer."""
        stream_id = self._next_id()
        answer = self._calls[stream_id] = asyncio.get_running_loop().create_future()
        write_frame(self._writer, stream_id, REQUEST, (endpoint, request))
        await self._writer.drain()
        return await answer

    async def generate(self, endpoint: str, request: object) -> AsyncIterator[Any]:
        """Send a request; the iterator yields the items of its answer."""
        stream_id = self._next_id()
        queue = self._streams[stream_id] = asyncio.Queue[tuple[int, Any]]()
        write_frame(self._writer, stream_id, REQUEST, (endpoint, request))
        await self._writer.drain()
        return self._items(queue)

    async def read(self) -> None:
        """Sort frames until the connection ends, then fail whoever waits."""
        calls, streams = self._calls, self._streams
        try:
            while True:
                stream_id, kind, value = await read_frame(self._reader)
                if kind == VALUE:
                    calls.pop(stream_id).set_result(value)
                elif kind == ITEM:
                    streams[stream_id].put_nowait((ITEM, value))
                else:
                    streams.pop(stream_id).put_nowait((END, None))
        except (asyncio.IncompleteReadError, ConnectionError):
            lost = ConnectionResetError("the server is gone")
            for call in calls.values():
                call.set_exception(lost)
            for queue in streams.values():
                queue.put_nowait((END, lost))

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def _items(self, queue: "asyncio.Queue[tuple[int, Any]]") -> AsyncIterator[Any]:
        while True:
            kind, value = await queue.get()
            if kind == ITEM:
                yield value
            elif value is None:
                return
            else:
                raise value


@asynccontextmanager
async def serve(engines: Mapping[str, Callable[[Any], Any]]) -> AsyncIterator[str]:
    """Serve on a free loopback port while entered; gives the address."""
    server = await asyncio.start_server(Service(engines).take, "127.0.0.1", 0, limit=LIMIT_BYTES)
    host, port = server.sockets[0].getsockname()[:2]
    yield f"{host}:{port}"
    server.close()


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Client]:
    """Stay connected to a serving process while entered."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=LIMIT_BYTES)
    without_delay(writer)
    client = Client(reader, writer)
    reading = asyncio.create_task(client.read())
    yield client
    reading.cancel()
    writer.close()
