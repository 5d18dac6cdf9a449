"""How `scale.py` and `syscalls.py` start processes: the one file of theirs that knows the harness's.

A process may be started through another program (`strace`, `perf stat`), its *wrapper*. Nothing here
decides what is measured.
"""

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from arms import Arm
from processes import SERVER_START_TIMEOUT_S, Child, RunFailed, ServerProcess, child

# How long a loading process may take to be connected to everything it loads.
CONNECT_TIMEOUT_S = 30

# How long one loading process may take, and then to end.
LOAD_TIMEOUT_S = 40
END_TIMEOUT_S = 5


def process_cpu_s(pid: int) -> float:
    """Return the CPU seconds used so far by another process, all its threads, user and system.

    The number is what clock_getcpuclockid(3) gives: the pid and CPUCLOCK_SCHED.
    """
    return time.clock_gettime((~pid << 3) | 2)


@asynccontextmanager
async def serving(
    arm: Arm, folder: Path, cpu: int, script: str = "server.py", wrapper: Sequence[str] = ()
) -> AsyncIterator[ServerProcess]:
    """Run a serving process, ready to be called, while entered."""
    async with child(arm, folder, script, arm.name, str(cpu), wrapper=wrapper) as running:
        yield ServerProcess(running, await _said(running, "server", SERVER_START_TIMEOUT_S))


class Loader:
    """A loading process that is connected, and waits to be let go."""

    def __init__(self, running: Child) -> None:
        """Keep the process."""
        self._running = running

    def go(self) -> None:
        """Let it begin: it waits for the end of its standard input."""
        self._running.close_stdin()

    async def figures(self) -> dict[str, Any]:
        """Return its figures, and let it end."""
        figures = await _said(self._running, "client", LOAD_TIMEOUT_S)
        await self._running.end(END_TIMEOUT_S)
        return figures


@asynccontextmanager
async def loading(
    arm: Arm, folder: Path, script: str, job: dict[str, Any], wrapper: Sequence[str] = ()
) -> AsyncIterator[Loader]:
    """Run a loading process, connected and waiting, while entered."""
    async with child(arm, folder, script, json.dumps(job), wrapper=wrapper) as running:
        await _said(running, "client", CONNECT_TIMEOUT_S)
        yield Loader(running)


async def _said(running: Child, who: str, timeout_s: float) -> dict[str, Any]:
    """Return the next line of a process; a failure says whose."""
    try:
        return await running.read(timeout_s)
    except RunFailed as failure:
        raise RunFailed(f"the {who} {failure}") from None
