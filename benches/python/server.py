"""The serving process of one run: `server.py ARM CPU`.

It prints `{"address", "pid"}` when it can be called, and what it has used when its standard input
closes. The runner holds that input, so a server never outlives its runner.
"""

import asyncio
import json
import os
import sys

import uvloop

import usage
from arms import ARMS
from engines import ENGINES


def tell(message: dict[str, object]) -> None:
    """Print one line for the runner."""
    print(json.dumps(message), flush=True)


async def stdin_closed() -> None:
    """Wait until the runner has closed our standard input."""
    loop = asyncio.get_running_loop()
    closed = loop.create_future()
    loop.add_reader(0, closed.set_result, None)
    await closed
    loop.remove_reader(0)


async def main(arm_name: str) -> None:
    """Serve until told to stop."""
    async with ARMS[arm_name].load().serve(ENGINES) as address:
        tell({"address": address, "pid": os.getpid()})
        await stdin_closed()
        tell({**usage.read()})


if __name__ == "__main__":
    # Before anything starts a thread: threads inherit it.
    os.sched_setaffinity(0, {int(sys.argv[2])})
    uvloop.run(main(sys.argv[1]))
