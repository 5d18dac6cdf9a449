"""How tests serve, wait and start processes. Nothing here sleeps to wait for a state: it looks for the state,
with a guard that only a bug reaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import headrace as hr

GUARD = 20.0
"""Seconds after which a state that has not come never will."""

WORKERS = Path(__file__).parent / "workers"


async def eventually(predicate: Callable[[], object], guard: float = GUARD) -> None:
    """Wait until the predicate holds."""
    loop = asyncio.get_running_loop()
    until = loop.time() + guard
    while not predicate():
        assert loop.time() < until, f"not within {guard} s: {_source(predicate)}"
        await asyncio.sleep(0.002)


def _source(predicate: Callable[[], object]) -> str:
    cells = [cell.cell_contents for cell in getattr(predicate, "__closure__", None) or ()]
    known = [f"{each!r}: {each.stats()}" for each in cells if isinstance(each, hr.Worker | hr.Router)]
    code = predicate.__code__
    return f"{code.co_filename}:{code.co_firstlineno} {known or cells}"


GAUGES = ("running", "queued", "streams", "in_flight")


def idle(*parties: hr.Worker | hr.Router) -> bool:
    """Whether every gauge of these workers and routers stands at zero."""
    return not any(party.stats().get(gauge) for party in parties for gauge in GAUGES)


@contextlib.asynccontextmanager
async def serving(
    engine: Any,
    address: str = "127.0.0.1:0",
    *,
    router: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[hr.Worker, hr.Router]]:
    """A worker and a router on this loop. A test that passes leaves every gauge at zero."""
    async with hr.serve(engine, address, **settings) as worker:
        async with hr.Router(worker.address, **(router or {})) as its_router:
            yield worker, its_router
            await eventually(lambda: idle(worker, its_router))
        await eventually(lambda: worker.stats()["links"] == 0)


@contextlib.asynccontextmanager
async def routing(address: str, **settings: Any) -> AsyncIterator[hr.Router]:
    """A router to a worker in another process. A test that passes leaves every gauge at zero."""
    async with hr.Router(address, **settings) as router:
        yield router
        await eventually(lambda: idle(router))


class Process:
    """A process of a test, ended through its handle when the test leaves it."""

    def __init__(self, arguments: list[str], **options: Any) -> None:
        self.popen = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    @property
    def pid(self) -> int:
        return self.popen.pid

    async def line(self) -> str:
        """The next line that it prints. The loop goes on meanwhile."""
        assert self.popen.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(self.popen.stdout.readline), GUARD)
        assert line, f"it printed nothing and ended: {self.output()}"
        return line.rstrip("\n")

    async def error_line(self) -> str:
        """The next line that it prints to standard error."""
        assert self.popen.stderr is not None
        line = await asyncio.wait_for(asyncio.to_thread(self.popen.stderr.readline), GUARD)
        return line.rstrip("\n")

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def output(self, guard: float = GUARD) -> tuple[int, str, str]:
        """Exit code, standard output and standard error, when it has ended."""
        out, err = self.popen.communicate(timeout=guard)
        return self.popen.returncode, out, err

    async def ended(self, guard: float = GUARD) -> tuple[int, str, str]:
        """As `output`, without blocking the loop."""
        return await asyncio.to_thread(self.output, guard)

    def end(self) -> None:
        if self.popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.popen.send_signal(signal.SIGCONT)
                self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def python(*arguments: str, **options: Any) -> Iterator[Process]:
    """A Python process; with ``"-c", code`` or the path of a script."""
    process = Process([sys.executable, *arguments], **options)
    try:
        yield process
    finally:
        process.end()


@contextlib.asynccontextmanager
async def worker_process(name: str = "engines.py", *arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """A process of a test and the first line that it prints: a worker's is its address."""
    with python(str(WORKERS / name), *arguments) as process:
        yield process, await process.line()


def run_script(code: str, *arguments: str, guard: float = GUARD) -> tuple[int, str, str]:
    """Run code in a fresh interpreter until it ends: exit code, standard output, standard error."""
    with python("-c", code, *arguments, env={**os.environ, "PYTHONPATH": str(WORKERS)}) as process:
        return process.output(guard)


class Log(list[Any]):
    """What an engine noted; a test waits for it with `eventually`."""

    def note(self, entry: Any) -> None:
        self.append(entry)


async def echo_requests(request: Any, ctx: hr.Context) -> AsyncIterator[Any]:
    """Yields the items of a request stream."""
    async for item in ctx.requests:
        yield item


class RequestSource:
    """An iterator that notes how it ends: endless numbers, or the `items`, after which it waits for ever."""

    def __init__(self, items=None):
        self.items, self.log = items, Log()

    async def __aiter__(self):
        try:
            if self.items is None:
                number = 0
                while True:
                    yield number
                    number += 1
            for item in self.items:
                yield item
            self.log.note("waits")
            await asyncio.Event().wait()
        except BaseException as error:
            self.log.note(type(error).__name__)
            raise

    async def closed(self, *before):
        """Closed at its `yield`, or interrupted where it waits."""
        await eventually(lambda: len(self.log) == len(before) + 1)
        assert tuple(self.log[:-1]) == before
        assert self.log[-1] == ("CancelledError" if before else "GeneratorExit")


class EchoEngine:
    """Echoes, and notes how it ended."""

    def __init__(self, serve=echo_requests):
        self.log, self.serve = Log(), serve

    async def generate(self, request, ctx):
        try:
            async for item in self.serve(request, ctx):
                yield item
        except BaseException as error:
            self.log.note(type(error).__name__)
            raise

    async def cancelled(self):
        await eventually(lambda: len(self.log) == 1)
        assert self.log[0] in ("CancelledError", "GeneratorExit")
