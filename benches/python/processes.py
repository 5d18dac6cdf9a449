"""The processes of one run: started here, bounded in time, and always ended here."""

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from arms import Arm

HERE = Path(__file__).parent
SERVER_START_TIMEOUT_S = 20
SERVER_STOP_TIMEOUT_S = 10

# Above the 50 s that Dynamo's QUIC plane takes to notice the five deaths of `kill`.
CLIENT_TIMEOUT_S = 90


class RunFailed(Exception):
    """A run gave no figures; the message says why."""


class Child:
    """A Python process of this folder, its output read line by line."""

    def __init__(self, process: asyncio.subprocess.Process, errors: Any) -> None:
        """Take over a process that was just started, and the file of its error output."""
        self._process = process
        self._errors = errors
        self.pid = process.pid

    async def read(self, timeout_s: float) -> dict[str, Any]:
        """Return the next line, which is JSON."""
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise RunFailed(f"said nothing for {timeout_s} s{self._error_tail()}") from None
        if not line:
            raise RunFailed(f"ended without an answer{self._error_tail()}")
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            raise RunFailed(f"said {line[:200]!r}{self._error_tail()}") from None

    def close_stdin(self) -> None:
        """Tell the process that it may go."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def end(self, grace_s: float) -> bool:
        """Wait for the process, and kill it when that takes too long; say whether it went alone."""
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
            return True
        except TimeoutError:
            return False
        finally:
            if self._process.returncode is None:
                with suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()

    def _error_tail(self) -> str:
        """Return the end of what the process wrote to its error output."""
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip()[-2000:]
        return f":\n{tail}" if tail else ""


@asynccontextmanager
async def child(
    arm: Arm, folder: Path, script: str, *arguments: str, wrapper: Sequence[str] = ()
) -> AsyncIterator[Child]:
    """Run a script of this folder for an arm while entered, through another program if there is a `wrapper`.

    The processes of a run share `folder` for temporary files: peers which meet in a folder find each
    other there.
    """
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *wrapper,
            *arm.command(script),
            *arguments,
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
        running = Child(process, errors)
        try:
            yield running
        finally:
            await running.end(grace_s=0)


class ServerProcess:
    """A serving process that is ready to be called."""

    def __init__(self, running: Child, ready: dict[str, Any]) -> None:
        """Keep the process and what it said when it was ready."""
        self._running = running
        self.address: str = ready["address"]
        self.pid: int = ready["pid"]

    async def stop(self) -> dict[str, float]:
        """Stop the process; return what it has used, or nothing if it was killed meanwhile."""
        self._running.close_stdin()
        try:
            used = await self._running.read(SERVER_STOP_TIMEOUT_S)
        except RunFailed:
            return {}
        if not await self._running.end(SERVER_STOP_TIMEOUT_S):
            used["server_had_to_be_killed"] = 1.0
        return used


@asynccontextmanager
async def server(arm: Arm, folder: Path, cpu: int) -> AsyncIterator[ServerProcess]:
    """Run a serving process while entered."""
    async with child(arm, folder, "server.py", arm.part, str(cpu)) as running:
        try:
            ready = await running.read(SERVER_START_TIMEOUT_S)
        except RunFailed as failure:
            raise RunFailed(f"the server {failure}") from None
        yield ServerProcess(running, ready)


async def run_client(arm: Arm, folder: Path, script: str, job: dict[str, Any]) -> dict[str, float]:
    """Run a loading process to its figures."""
    async with child(arm, folder, script, json.dumps(job)) as running:
        try:
            figures = await running.read(CLIENT_TIMEOUT_S)
        except RunFailed as failure:
            raise RunFailed(f"the client {failure}") from None
        if not await running.end(SERVER_STOP_TIMEOUT_S):
            figures["client_had_to_be_killed"] = 1.0
        return figures
