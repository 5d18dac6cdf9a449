"""The demo's worker processes: `headrace serve`, started, read and ended by handle.

Whoever leaves `start_workers`, by any way, leaves no process behind: each worker gets SIGTERM and,
after a grace period, SIGKILL.
"""

import asyncio
import os
import re
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 60  # Loading the model takes half a second; a busy machine takes longer.
STOP_GRACE_S = 5  # A worker without requests drains at once.
KEPT_LINES_MAX = 20  # Of a worker's output, to explain why it failed.

READY = re.compile(r"serving .*?(127\.0\.0\.1:\d+)(?:.*?\(instance ([^\s,)]+))?")
METRICS = re.compile(r"metrics and health at (127\.0\.0\.1:\d+)")


Ready = asyncio.Future[tuple[re.Match[str], re.Match[str]] | None]
"""What a worker has said: where it serves, and where its metrics are. `None` if it ended before."""


class WorkerStartError(Exception):
    """A worker process ended or stayed silent instead of serving."""


@dataclass(frozen=True)
class Worker:
    """A worker process that has said it is ready."""

    name: str
    address: str
    instance_id: str
    metrics: str
    process: asyncio.subprocess.Process

    def kill(self) -> None:
        """End the process as a crash would: SIGKILL, without a word to anyone."""
        self.process.kill()


@asynccontextmanager
async def start_workers(engine: str, count: int) -> AsyncGenerator[list[Worker], None]:
    """Start `count` workers side by side and yield them once all are ready."""
    async with AsyncExitStack() as stack:
        starting = [
            stack.enter_async_context(start_worker(engine, f"worker {number}"))
            for number in range(1, count + 1)
        ]
        # Every start is awaited, so that a failed one leaves no other half done.
        started = await asyncio.gather(*starting, return_exceptions=True)
        workers: list[Worker] = []
        for outcome in started:
            if isinstance(outcome, BaseException):
                raise outcome
            workers.append(outcome)
        yield workers


@asynccontextmanager
async def start_worker(engine: str, name: str) -> AsyncGenerator[Worker, None]:
    """Start one worker in this folder, yield it once it serves, and end it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headrace", "serve", engine),
        *("--address", "127.0.0.1:0", "--metrics", "127.0.0.1:0"),
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    lines: deque[str] = deque(maxlen=KEPT_LINES_MAX)
    ready: Ready = asyncio.get_running_loop().create_future()
    reading = asyncio.create_task(_read_output(process, lines, ready))
    try:
        address, instance_id, metrics = await _wait_until_ready(process, name, lines, ready)
        yield Worker(name, address, instance_id, metrics, process)
    finally:
        await _stop(process)
        reading.cancel()


async def _wait_until_ready(
    process: asyncio.subprocess.Process,
    name: str,
    lines: deque[str],
    ready: Ready,
) -> tuple[str, str, str]:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            said = await ready
            if said is not None:
                serving, metrics = said
                return serving[1], serving[2] or serving[1], metrics[1]
            outcome = f"exited with code {await process.wait()} before it was ready"
    except TimeoutError:
        outcome = f"was not ready after {START_TIMEOUT_S} s"
    raise WorkerStartError("\n  ".join([f"{name} {outcome}; it printed:", *(lines or ["nothing"])]))


async def _read_output(
    process: asyncio.subprocess.Process,
    lines: deque[str],
    ready: Ready,
) -> None:
    """Keep the worker's pipe empty, and resolve `ready` when it has said both, or at its end."""
    assert process.stdout is not None
    serving = metrics = None
    async for line in process.stdout:
        lines.append(line.decode(errors="replace").rstrip())
        serving = serving or READY.search(lines[-1])
        metrics = metrics or METRICS.search(lines[-1])
        if not ready.done() and serving is not None and metrics is not None:
            ready.set_result((serving, metrics))
    if not ready.done():
        ready.set_result(None)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, a grace period, SIGKILL; the process is reaped when this returns."""
    try:
        with suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(STOP_GRACE_S):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
