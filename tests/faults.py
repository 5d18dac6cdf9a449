"""The program ``faultproxy`` for Python tests: a TCP proxy that delays, slices, resets, half-closes, swallows
or changes bytes where a plan says so. ``rust/faults/src/json.rs`` says what a plan is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from typing import Any

from support import GUARD, Process

PROGRAM = os.environ.get("HEADRACE_FAULTPROXY")
"""Where the program is, as `make test-python` says."""


class FaultProxy:
    """A running proxy."""

    def __init__(self, process: Process, address: str) -> None:
        self._process = process
        self.address = address
        """Where it listens."""

    async def _ask(self, line: str) -> str:
        assert self._process.popen.stdin is not None
        self._process.popen.stdin.write(line + "\n")
        self._process.popen.stdin.flush()
        return await self._process.line()

    async def plan(self, plan: dict[str, Any]) -> None:
        """Take another plan for the connections from now on; for it they count from 0."""
        answer = await self._ask(json.dumps(plan))
        assert answer == "taken", answer

    async def records(self) -> list[dict[str, Any]]:
        """What is known of the latest connections once all have ended: ``number``, ``to_server`` and
        ``to_client`` in bytes, ``fired`` (the name of a fault or ``None``) and ``open``.
        """
        async with asyncio.timeout(GUARD):
            while True:
                records = json.loads(await self._ask("records"))
                if not any(record["open"] for record in records):
                    return records
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def fault_proxy(target: str, plan: dict[str, Any] | None = None) -> AsyncIterator[FaultProxy]:
    """A proxy to the worker at ``target``, an address with a port."""
    assert PROGRAM, "HEADRACE_FAULTPROXY names no program"
    assert shutil.which(PROGRAM), f"{PROGRAM} is not built"
    process = Process([PROGRAM, target, json.dumps(plan or {})], stdin=subprocess.PIPE)
    try:
        yield FaultProxy(process, await process.line())
    finally:
        with contextlib.suppress(BrokenPipeError):
            if process.popen.stdin is not None:
                process.popen.stdin.close()
        process.end()
