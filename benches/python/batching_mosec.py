"""The mosec arm: its server in processes of its own, and a bare HTTP client on asyncio.

It is no library within the caller's process: each item is a request over loopback TCP, read by its Rust
server and passed to a Python worker over a Unix socket. What it is compared in is that way of working.
"""

import asyncio
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from batching_arms import Function, Settings

LATE = (TimeoutError,)
START_TIMEOUT_S = 20
STOP_TIMEOUT_S = 5


class _Connection(asyncio.Protocol):
    """One kept connection with at most one request on its way."""

    def __init__(self) -> None:
        self._read = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def ask(self, body: bytes) -> asyncio.Future[bytes]:
        self._answer = self._loop.create_future()
        self._transport.write(
            b"POST /inference HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) < length or self._answer is None:
            return
        answer, self._answer, self._read = self._answer, None, b""
        if head.startswith(b"HTTP/1.1 200 "):
            answer.set_result(body)
        else:
            answer.set_exception(RuntimeError(head.decode()))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.set_exception(exc or ConnectionError("mosec closed the connection"))

    def close(self) -> None:
        self._transport.close()


class _Client:
    """As many connections as there are items on their way at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: deque[_Connection] = deque()

    async def submit(self, item: int) -> int:
        connection = self._idle.pop() if self._idle else await self.connect()
        answer = await connection.ask(b"%d" % item)
        self._idle.append(connection)
        return int(answer)

    async def connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


@asynccontextmanager
async def open(function: Function, settings: Settings) -> AsyncIterator[_Client]:
    """Run a server for one of the functions that it knows by name, on the other core."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    script = str(Path(__file__).parent / "batching_mosec_server.py")
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        script,
        *("--port", str(port), "--address", "127.0.0.1", "--log-level", "error"),
        *("--function", function.name, "--cpu", str(settings.other_cpu)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    client = _Client(port)
    try:
        await asyncio.wait_for(_first_answer(client), START_TIMEOUT_S)
        yield client
    finally:
        client.close()
        assert server.stdin is not None
        server.stdin.close()
        await asyncio.wait_for(server.wait(), STOP_TIMEOUT_S)


async def _first_answer(client: _Client) -> None:
    """Wait until the server and its worker answer: until then it refuses, or says that it is not ready."""
    while True:
        try:
            await client.submit(0)
            return
        except (OSError, RuntimeError):
            await asyncio.sleep(0.05)
