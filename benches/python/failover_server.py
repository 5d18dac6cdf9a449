"""A worker of a failover run: `failover_server.py JOB`.

The bounds of the workers are the case's, so that a load can exceed them. The lines that go to the runner are
those of `server.py`.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import headrace
import uvloop

import usage
from server import stdin_closed, tell

# A frozen worker is ended by the runner, and others have streams open at the end: nothing waits for them.
DRAIN_TIMEOUT_S = 0.5


async def count(request: dict[str, Any]) -> AsyncIterator[int]:
    """Yield numbers from `start` on for ever, `gap_s` apart."""
    number = request["start"]
    while True:
        yield number
        number += 1
        await asyncio.sleep(request["gap_s"])


async def work(request: float) -> None:
    """Be at work for so many seconds, elsewhere: the loop is free."""
    await asyncio.sleep(request)


async def compute(request: float) -> None:
    """Be at work for so many seconds on the loop, which does nothing else meanwhile."""
    until = time.monotonic() + request
    while time.monotonic() < until:
        pass


async def main(bounds: dict[str, int]) -> None:
    """Serve until told to stop."""
    engines = {"count": count, "work": work, "compute": compute}
    async with headrace.serve(
        engines, "127.0.0.1:0", **bounds, discovery=False, drain_timeout=DRAIN_TIMEOUT_S
    ) as worker:
        tell({"address": worker.address, "pid": os.getpid()})
        await stdin_closed()
        tell({**usage.read()})


if __name__ == "__main__":
    job: dict[str, Any] = json.loads(sys.argv[1])
    # Before anything starts a thread: threads inherit it.
    os.sched_setaffinity(0, {job["cpu"]})
    uvloop.run(main(job["bounds"]))
