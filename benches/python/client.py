"""The loading process of one run: `client.py JOB`, which prints the figures as one JSON line."""

import json
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import uvloop

import usage
from arms import ARMS
from bench import Bench, Server
from scenarios import SCENARIOS


@dataclass(frozen=True)
class Job:
    """What the runner asks of one client process."""

    arm: str
    scenario: str
    params: dict[str, Any]
    servers: list[dict[str, Any]]
    cpu: int


async def main(job: Job) -> None:
    """Connect to every server, and run the scenario's load."""
    arm = ARMS[job.arm].load()
    servers = [Server(**server) for server in job.servers]
    async with AsyncExitStack() as stack:
        addresses = [server.address for server in servers] or [""]
        clients = [await stack.enter_async_context(arm.connect(address)) for address in addresses]
        load = SCENARIOS[job.scenario].load
        assert load is not None, "first_response.py runs the scenario without a load"
        figures = await load(Bench(clients, servers, job.params))
        # Printed before the connections close, so that the figures do not depend on how they do.
        figures["client_peak_rss_mib"] = usage.read()["peak_rss_kib"] / 1024
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    job = Job(**json.loads(sys.argv[1]))
    # Before anything starts a thread: threads inherit it.
    os.sched_setaffinity(0, {job.cpu})
    uvloop.run(main(job))
