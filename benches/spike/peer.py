"""One process of a measurement: `peer.py server ...` or `peer.py client ...`.

The client prints one JSON object with what it measured. Both processes run the same code above
the transport for every arm.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any

import headrace_spike

from transport import CLOSED, DATA, IN_PROCESS, PING, PONG, REQUEST, InProcess, attach

STREAMS = 256
PERIOD = 0.020
ITEM = b"x" * 64
WARM_UP = 0.4
STOP_STREAM = 0

# The first byte of a request says what it asks for.
ECHO, SLEEPER, RELEASED, PACED, MARK, SLEEP_BLOCK, SPIN_BLOCK = (bytes([i]) for i in range(7))


def usage() -> dict[str, float]:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "pid": os.getpid(),
        "user_us": own.ru_utime * 1e6,
        "sys_us": own.ru_stime * 1e6,
        "voluntary": own.ru_nvcsw,
        "involuntary": own.ru_nivcsw,
    }


class Server:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.transport: Any = None
        self.release: deque[asyncio.Future[None]] = deque()
        self.pacer: int | None = None
        self.whole_step = False
        self.start = 0.0

    def spawn(self, coro: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(coro)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def dispatch(self, stream: int, kind: int, payload: bytes) -> None:
        if kind == CLOSED:
            self.closed.set()
            return
        what = payload[:1]
        if what == ECHO:
            self.spawn(self.echo(stream, payload))
        elif what == SLEEPER:
            self.spawn(self.sleeper(stream))
        elif what in (RELEASED, PACED):
            self.spawn(self.follower(stream))
            if self.pacer is None:
                self.pace(int(PERIOD * 1e9) if what == RELEASED else int(PERIOD * 1e9 / STREAMS))
                self.whole_step = what == RELEASED
        elif what == MARK:
            mark = {"usage": usage(), "stats": self.transport.stats()}
            self.transport.send(stream, DATA, json.dumps(mark).encode())
        elif what == SLEEP_BLOCK:
            time.sleep(1.0)
        elif what == SPIN_BLOCK:
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                pass

    async def echo(self, stream: int, payload: bytes) -> None:
        self.transport.send(stream, DATA, payload)

    async def sleeper(self, stream: int) -> None:
        """A stream on its own clock, as an engine written with asyncio.sleep would be."""
        if not self.start:
            self.start = self.loop.time() + 0.1
        due = self.start + stream * PERIOD / STREAMS
        while True:
            await asyncio.sleep(max(0.0, due - self.loop.time()))
            self.transport.send(stream, DATA, ITEM)
            due += PERIOD

    async def follower(self, stream: int) -> None:
        """A stream that emits when the engine's step reaches it."""
        while True:
            turn = self.loop.create_future()
            self.release.append(turn)
            await turn
            self.transport.send(stream, DATA, ITEM)

    def pace(self, ns: int) -> None:
        self.pacer = headrace_spike.pacer_fd(ns)
        self.loop.add_reader(self.pacer, self.step)

    def step(self) -> None:
        assert self.pacer is not None
        fired = int.from_bytes(os.read(self.pacer, 8), sys.byteorder)
        count = len(self.release) if self.whole_step else min(fired, len(self.release))
        for _ in range(count):
            turn = self.release.popleft()
            if not turn.done():
                turn.set_result(None)

    def stop(self) -> None:
        if self.pacer is not None:
            self.loop.remove_reader(self.pacer)
        for task in self.tasks:
            task.cancel()


class Mailbox:
    """The consumer's end of a stream: one Future per item that was waited for."""

    __slots__ = ("items", "loop", "waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.items: deque[bytes] = deque()
        self.waiter: asyncio.Future[bytes] | None = None

    def feed(self, item: bytes) -> None:
        waiter = self.waiter
        if waiter is None:
            self.items.append(item)
        else:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(item)

    async def next(self) -> bytes:
        if self.items:
            return self.items.popleft()
        self.waiter = self.loop.create_future()
        return await self.waiter


class Client:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.boxes = [Mailbox(self.loop) for _ in range(STREAMS + 1)]
        self.transport: Any = None
        self.pongs: dict[int, float] = {}
        self.count = 0

    def dispatch(self, stream: int, kind: int, payload: bytes) -> None:
        if kind == DATA:
            self.boxes[stream].feed(payload)
        elif kind == PONG:
            self.pongs[stream] = time.perf_counter()

    async def mark(self) -> tuple[dict[str, Any], dict[str, Any]]:
        self.transport.send(STREAMS, REQUEST, MARK)
        server = json.loads(await self.boxes[STREAMS].next())
        return {"usage": usage(), "stats": dict(self.transport.stats())}, server

    async def unary(self, seconds: float) -> dict[str, Any]:
        body = ECHO + ITEM[1:]
        clock = time.perf_counter_ns
        send, receive = self.transport.send, self.boxes[1].next
        latencies: list[int] = []
        before = None
        for phase in (WARM_UP, seconds):
            latencies.clear()
            before = await self.mark()
            until = clock() + int(phase * 1e9)
            now = clock()
            while now < until:
                send(1, REQUEST, body)
                await receive()
                then, now = now, clock()
                latencies.append(now - then)
        result = spent(before, await self.mark(), len(latencies))
        latencies.sort()
        result["p50_us"] = latencies[len(latencies) // 2] / 1e3
        result["p99_us"] = latencies[len(latencies) * 99 // 100] / 1e3
        return result

    async def consume(self, box: Mailbox) -> None:
        while True:
            await box.next()
            self.count += 1

    async def streams(self, what: bytes, seconds: float) -> dict[str, Any]:
        tasks = [self.loop.create_task(self.consume(box)) for box in self.boxes[:STREAMS]]
        for stream in range(STREAMS):
            self.transport.send(stream, REQUEST, what)
        await asyncio.sleep(WARM_UP)
        before, first = await self.mark(), self.count
        await asyncio.sleep(seconds)
        after, last = await self.mark(), self.count
        for task in tasks:
            task.cancel()
        result = spent(before, after, last - first)
        result["items_per_s"] = (last - first) / seconds
        return result

    async def pings(self, what: bytes) -> dict[str, Any]:
        """Pings every 50 ms while the server's loop is blocked for a second."""
        await asyncio.sleep(0.1)
        self.transport.send(1, REQUEST, what)
        await asyncio.sleep(0.03)
        sent: dict[int, float] = {}
        for number in range(16):
            sent[number] = time.perf_counter()
            self.transport.send(number, PING, b"")
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        times = sorted((self.pongs[n] - sent[n]) * 1e3 for n in sent if n in self.pongs)
        return {"answered": len(times), "p50_ms": times[len(times) // 2], "max_ms": times[-1]}


def spent(before: Any, after: Any, items: int) -> dict[str, Any]:
    """What both processes used between two marks, per item."""
    result: dict[str, Any] = {"items": items}
    sides = {before[i]["usage"]["pid"]: i for i in (0, 1)}
    for key in ("user_us", "sys_us", "voluntary", "involuntary"):
        total = sum(after[i]["usage"][key] - before[i]["usage"][key] for i in sides.values())
        result[key] = total / items
    result["cpu_us"] = result["user_us"] + result["sys_us"]
    result["switches"] = result["voluntary"] + result["involuntary"]
    for i, side in ((0, "client"), (1, "server")):
        start = before[i]["stats"]
        result[side] = {k: (v - start[k]) / items for k, v in after[i]["stats"].items()}
    return result


async def measure(client: Client, scenario: str, seconds: float) -> dict[str, Any]:
    if scenario == "S1":
        return await client.unary(seconds)
    if scenario == "ping-sleep":
        return await client.pings(SLEEP_BLOCK)
    if scenario == "ping-spin":
        return await client.pings(SPIN_BLOCK)
    what = {"S5": SLEEPER, "S5t": PACED, "S5b": RELEASED}[scenario]
    return await client.streams(what, seconds)


async def serve(arm: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    sock, _ = listener.accept()
    server = Server()
    await attach(server, sock, arm)
    await server.closed.wait()
    server.stop()


async def drive(arm: str, scenario: str, seconds: float, port: int) -> dict[str, Any]:
    client = Client()
    if arm != IN_PROCESS:
        sock = socket.create_connection(("127.0.0.1", port))
        await attach(client, sock, arm)
        return await measure(client, scenario, seconds)
    server = Server()
    server.transport, client.transport = InProcess(), InProcess()
    server.transport.peer, client.transport.peer = client.dispatch, server.dispatch
    result = await measure(client, scenario, seconds)
    server.stop()
    return result


def main() -> None:
    role, arm, loop, core, scenario, seconds, port = sys.argv[1:]
    if core != "any":
        # Before the first link: tokio's threads inherit the affinity of the thread that starts them.
        os.sched_setaffinity(0, {int(core)})
    if loop == "uvloop":
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    else:
        runner = asyncio.Runner()
    with runner:
        if role == "server":
            runner.run(serve(arm))
        else:
            print(json.dumps(runner.run(drive(arm, scenario, float(seconds), int(port)))))


if __name__ == "__main__":
    main()
