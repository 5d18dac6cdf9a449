"""The links that the scenarios run over, behind one small surface.

A transport has `send(stream, kind, payload)`, calls `dispatch(stream, kind, payload)` on the
loop's thread, and has `stats()`. Nothing above it knows which arm it runs on.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

import headrace_spike
import msgspec

REQUEST, DATA = 1, 2
PING, PONG = 12, 13
CLOSED = 255

Dispatch = Callable[[int, int, bytes], None]

# Arm names: a letter, then how writes gather ("+soon", "+adapt", else direct) and "-guard" to
# leave the guardian out.
FLOOR, IN_PROCESS = "floor", "in-process"
GUARDIAN_MS = 20


class Native:
    """Arms a, b and c: the Rust link."""

    def __init__(self, sock: socket.socket, arm: str, dispatch: Dispatch) -> None:
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = loop
        self._dispatch = dispatch
        # The native side owns the descriptor. A Python socket object beside it would close it a
        # second time.
        fd = sock.detach()
        policy = "soon" if "+soon" in arm else "adaptive" if "+adapt" in arm else "direct"
        guardian_ms = 0 if "-guard" in arm else GUARDIAN_MS
        self._link = headrace_spike.Link(fd, arm[0], policy, guardian_ms, self._receive, loop.call_soon)
        self._link.bind_flush(self._link.flush)
        self._fds = [self._link.wake_fd]
        loop.add_reader(self._link.wake_fd, self._link.drain)
        if arm[0] == "c":
            self._fds.append(fd)
            loop.add_reader(fd, self._link.on_readable)
        # Bound once, so that a send costs one native call and no Python frame.
        self.send = self._link.send
        self.stats = self._link.stats

    def _receive(self, stream: int, kind: int, payload: bytes) -> None:
        if kind == CLOSED:
            # A readable end of file is level-triggered: left registered, it would spin the loop.
            for fd in self._fds:
                self._loop.remove_reader(fd)
        self._dispatch(stream, kind, payload)


class Floor(asyncio.Protocol):
    """The pure-Python floor: length-prefixed msgpack, one write per turn of the loop."""

    _length = struct.Struct("<I")

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._loop = asyncio.get_running_loop()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder().decode
        self._out: list[bytes] = []
        self._in = b""
        self._writes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if self._in:
            data = self._in + data
        at, end = 0, len(data)
        view = memoryview(data)
        while end - at >= 4:
            (length,) = self._length.unpack_from(data, at)
            if end - at - 4 < length:
                break
            stream, kind, payload = self._decode(view[at + 4 : at + 4 + length])
            at += 4 + length
            if kind == PING:
                self.send(stream, PONG, payload)
            else:
                self._dispatch(stream, kind, payload)
        self._in = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._dispatch(0, CLOSED, b"")

    def send(self, stream: int, kind: int, payload: bytes) -> None:
        body = self._encode((stream, kind, payload))
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(self._length.pack(len(body)))
        self._out.append(body)

    def _flush(self) -> None:
        data = b"".join(self._out)
        self._out.clear()
        if self._transport.is_closing():
            return
        self._writes += 1
        self._transport.write(data)

    def stats(self) -> dict[str, int]:
        return {"loop_writes": self._writes}


class InProcess:
    """No transport: both ends on one loop, to be subtracted from the others."""

    def __init__(self) -> None:
        self.peer: Dispatch = lambda stream, kind, payload: None

    def send(self, stream: int, kind: int, payload: bytes) -> None:
        self.peer(stream, kind, payload)

    def stats(self) -> dict[str, int]:
        return {}


async def attach(peer: Any, sock: socket.socket, arm: str) -> None:
    """Sets `peer.transport` before the first frame can arrive."""
    if arm != FLOOR:
        peer.transport = Native(sock, arm, peer.dispatch)
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.transport = Floor(peer.dispatch)
    await asyncio.get_running_loop().create_connection(lambda: peer.transport, sock=sock)
