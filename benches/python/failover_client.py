"""The calling process of a failover run: `failover_client.py JOB`, which prints figures as one JSON line."""

import json
import os
import sys
from typing import Any

import uvloop

from bench import Server
from failover_cases import CASES
from server import tell


async def main(job: dict[str, Any]) -> None:
    """Run the case's load."""
    case = CASES[job["case"]]
    tell(await case.load([Server(**server) for server in job["servers"]], case.params))


if __name__ == "__main__":
    job: dict[str, Any] = json.loads(sys.argv[1])
    # Before anything starts a thread: threads inherit it.
    os.sched_setaffinity(0, {job["cpu"]})
    uvloop.run(main(job))
