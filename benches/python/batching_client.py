"""The measured process of one run: `batching_client.py JOB`, which prints the figures as one JSON line."""

import asyncio
import gc
import json
import os
import sys
from typing import Any

import uvloop

from batching_arms import BATCHING_ARMS
from batching_cases import CASES
from batching_place import Place
from server import tell


async def main(job: dict[str, Any]) -> None:
    """Run the case's load."""
    place = Place(BATCHING_ARMS[job["arm"]], job["params"], job["other_cpu"], job["repeat"])
    tell(dict(await CASES[job["case"]].run(place)))


if __name__ == "__main__":
    job: dict[str, Any] = json.loads(sys.argv[1])
    # Before anything starts a thread: threads inherit it.
    os.sched_setaffinity(0, {job["cpu"]})
    if not job["collects"]:
        gc.disable()
    {"uvloop": uvloop.run, "asyncio": asyncio.run}[job["loop"]](main(job))
