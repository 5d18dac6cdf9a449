"""aiohttp: a POST for each call, a chunked response for each stream, msgpack in both.

One session with keep-alive and no limit of connections; no access log, no timeouts, no compression,
and the limit of a request's size raised for 1 MiB echoes. An item is a length and its msgpack, one
`write` each, as a service that wants its items seen at once does it. The client splits whatever has
arrived itself, which is cheaper than two `readexactly` for each item. aiohttp switches Nagle's
algorithm off on both sides.

`handler_cancellation` is off by default and is switched on, or no engine would learn that its client
has gone. A stream holds a connection, so 10,000 of them take 10,000 descriptors on each side.
"""

import inspect
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

LENGTH = struct.Struct("<I")
LIMIT_BYTES = 64 * 1024 * 1024
READ_BYTES = 256 * 1024

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


def handler(engine: Callable[[Any], Any]) -> Any:
    """Return the request handler that runs an engine."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=encode(await engine(decode(await request.read()))))

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        items = engine(decode(await request.read()))
        await response.prepare(request)
        async for item in items:
            body = encode(item)
            await response.write(LENGTH.pack(len(body)) + body)
        await response.write_eof()
        return response

    return stream if inspect.isasyncgenfunction(engine) else answer


class Client:
    """The harness's two verbs on one session."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        """Call through `session`."""
        self._session = session

    async def call(self, endpoint: str, request: object) -> Any:
        """Call a unary engine."""
        async with self._session.post(f"/{endpoint}", data=encode(request)) as response:
            return decode(await response.read())

    async def generate(self, endpoint: str, request: object) -> AsyncIterator[Any]:
        """Call a streaming engine."""
        response = await self._session.post(f"/{endpoint}", data=encode(request))
        return self._items(response)

    async def _items(self, response: aiohttp.ClientResponse) -> AsyncIterator[Any]:
        """Yield every whole item as it arrives; leaving early closes the connection."""
        rest, unpack, header_bytes = b"", LENGTH.unpack_from, LENGTH.size
        async with response:
            async for chunk in response.content.iter_any():
                data = rest + chunk if rest else chunk
                offset, end = 0, len(data)
                while offset + header_bytes <= end:
                    start = offset + header_bytes
                    stop = start + unpack(data, offset)[0]
                    if stop > end:
                        break
                    yield decode(data[start:stop])
                    offset = stop
                rest = data[offset:]


@asynccontextmanager
async def serve(engines: Mapping[str, Callable[[Any], Any]]) -> AsyncIterator[str]:
    """Serve on a free loopback port while entered; gives the address."""
    app = web.Application(client_max_size=LIMIT_BYTES)
    app.add_routes([web.post(f"/{name}", handler(engine)) for name, engine in engines.items()])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    host, port = runner.addresses[0][:2]
    yield f"{host}:{port}"
    await runner.cleanup()


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Client]:
    """Keep a session with a serving process while entered."""
    async with aiohttp.ClientSession(
        f"http://{address}",
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=READ_BYTES,
        auto_decompress=False,
    ) as session:
        yield Client(session)
