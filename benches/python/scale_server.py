"""The serving process of a scale run: `scale_server.py ARM CPU`.

It is `server.py` with the engines of `scale_engines.py` besides; the same lines go to the runner.
"""

import os
import sys

import uvloop

import usage
from arms import ARMS
from engines import ENGINES
from scale_engines import SCALE_ENGINES
from server import stdin_closed, tell


async def main(arm_name: str) -> None:
    """Serve until told to stop."""
    async with ARMS[arm_name].load().serve({**ENGINES, **SCALE_ENGINES}) as address:
        tell({"address": address, "pid": os.getpid()})
        await stdin_closed()
        tell({**usage.read()})


if __name__ == "__main__":
    # Before anything starts a thread: threads inherit it.
    os.sched_setaffinity(0, {int(sys.argv[2])})
    uvloop.run(main(sys.argv[1]))
