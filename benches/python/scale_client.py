"""The loading process of a scale run: `scale_client.py JOB`.

It connects, prints how long that took, waits for its standard input to close, so that many clients
begin together, and prints the figures of its load. Both are one JSON line.
"""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter

import uvloop

from arms import ARMS, Client
from bench import Bench, Server
from client import Job
from scale_curves import CURVES
from scale_pool import connect_all
from server import stdin_closed, tell


@asynccontextmanager
async def connected(job: Job) -> AsyncIterator[Client]:
    """Be connected to every server of the job."""
    addresses = [server["address"] for server in job.servers]
    async with AsyncExitStack() as stack:
        if len(addresses) == 1:
            client = await stack.enter_async_context(ARMS[job.arm].load().connect(addresses[0]))
        else:
            client = await stack.enter_async_context(connect_all(job.arm, addresses))
        # Some arms connect with the first call, and all are fair game only after one.
        await client.call("usage", b"")
        yield client


async def main(job: Job) -> None:
    """Connect, wait, and run the load."""
    ARMS[job.arm].load()
    start = perf_counter()
    async with connected(job) as client:
        connect_ms = (perf_counter() - start) * 1000
        tell({"connect_ms": connect_ms})
        await stdin_closed()
        servers = [Server(**server) for server in job.servers]
        bench = Bench([client], servers, {**job.params, "arm": job.arm})
        figures = await CURVES[job.scenario].load(bench)
        # Printed before the connections close, so that the figures do not depend on how they do.
        tell({"connect_ms": connect_ms, **figures})


if __name__ == "__main__":
    job = Job(**json.loads(sys.argv[1]))
    # Before anything starts a thread: threads inherit it.
    os.sched_setaffinity(0, {job.cpu})
    uvloop.run(main(job))
