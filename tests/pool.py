"""`headrace serve --workers N` in a process of its own, what it prints, and the worker processes that it
announces. A test that passes leaves none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import WORKERS, Process, eventually, python

READY = re.compile(
    r"headrace: serving (?P<names>.*) on (?P<address>\S+) \(instance (?P<instance_id>[0-9a-f]{16})\); "
    r"worker (?P<index>\d+) of (?P<count>\d+), process (?P<pid>\d+)"
)


@dataclass(frozen=True)
class Announced:
    """A worker process as its line announces it."""

    index: int
    address: str
    instance_id: str
    pid: int
    names: str


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended; it may wait to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def exists(pid: int) -> bool:
    """Whether there is such a process, be it one that has ended and waits to be reaped."""
    return Path(f"/proc/{pid}").exists()


async def gone(pids: Iterable[int]) -> None:
    """Wait until none of these processes runs."""
    await eventually(lambda: not any(is_running(pid) for pid in pids))


class Pool:
    """The parent process and what is known of its worker processes."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.workers: dict[int, Announced] = {}
        """The last one announced for each index."""
        self.pids: set[int] = set()

    @property
    def addresses(self) -> list[str]:
        return [self.workers[index].address for index in sorted(self.workers)]

    async def next_line(self) -> str:
        line = await self.process.error_line()
        self.lines.append(line)
        assert line, f"it ended: {self.lines}, {await self.process.ended()}"
        if found := READY.match(line):
            index, pid = int(found["index"]), int(found["pid"])
            self.workers[index] = Announced(
                index, found["address"], found["instance_id"], pid, found["names"]
            )
            self.pids.add(pid)
        return line

    async def line(self, text: str) -> str:
        """The next line that contains this text."""
        while text not in (line := await self.next_line()):
            pass
        return line

    async def ready(self, count: int = 1) -> None:
        """Wait until so many more worker processes were announced."""
        for _ in range(count):
            while not READY.match(await self.next_line()):
                pass

    def signal(self, number: int) -> None:
        self.process.signal(number)

    async def ended(self) -> tuple[int, str, str]:
        """Exit code, standard output, and what was printed to standard error and not read before."""
        code, out, err = await self.process.ended()
        await gone(self.pids)
        return code, out, err


@contextlib.asynccontextmanager
async def run_pool(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> AsyncIterator[Pool]:
    """A Python process that has worker processes."""
    environment = {**os.environ, "PYTHONPATH": str(WORKERS), **(env or {})}
    with python(*arguments, env=environment, **options) as process:
        pool = Pool(process)
        yield pool
        process.end()
        await gone(pool.pids)


def serve_pool(*arguments: str, workers: int = 2, **options: Any):
    """`headrace serve --workers`."""
    return run_pool("-m", "headrace", "serve", *arguments, "--workers", str(workers), **options)


class Starts:
    """What `pool_starts` does when it is imported, and which processes have imported it."""

    def __init__(self, folder: Path, how: str) -> None:
        self._start = folder / "start"
        self._pids = folder / "pids"
        self._pids.touch()
        self.how(how)
        self.env = {"POOL_START": str(self._start), "POOL_PIDS": str(self._pids)}

    def how(self, how: str) -> None:
        # Replaced at once, since a worker may be reading it.
        new = self._start.with_suffix(".new")
        new.write_text(how)
        new.rename(self._start)

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self._pids.read_text().splitlines()]


async def while_calling(task: asyncio.Task[Any], calls: Iterable[Any]) -> list[int]:
    """Make calls one after the other in each of some loops until a task is done; how many each made.

    `calls` are functions that make one call and check its answer.
    """

    async def repeat(call: Any) -> int:
        made = 0
        while not task.done():
            await call()
            made += 1
        return made

    made = await asyncio.gather(*(repeat(call) for call in calls))
    await task
    return made
