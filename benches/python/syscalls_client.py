"""The loading process of a counted run: `syscalls_client.py JOB`.

It runs a scenario's load as `client.py` does, and then reads how often the threads of both sides were
switched. Without parameters it connects, calls once and loads nothing. It waits for its standard input
to close before it begins, like `scale_client.py`.
"""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import uvloop

from arms import ARMS
from bench import Bench, Server
from client import Job
from scale_processes import LOAD_TIMEOUT_S
from scenarios import SCENARIOS
from server import stdin_closed, tell

_SWITCHES = {
    "voluntary_ctxt_switches": "switches, voluntary",
    "nonvoluntary_ctxt_switches": "switches, involuntary",
}


def switches(pid: int) -> Counter[str]:
    """Return how often the living threads of a process were switched, voluntarily and not."""
    counts: Counter[str] = Counter()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for name, count in _switches_of(thread):
            counts[name] += count
            if thread.name != str(pid):
                counts[f"{name}, of native threads"] += count
    return counts


def _switches_of(thread: Path) -> Iterator[tuple[str, int]]:
    """Yield both counts of one thread; none if it has just ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in (thread / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in _SWITCHES:
                yield _SWITCHES[name], int(value)


async def main(job: Job) -> None:
    """Connect, wait, load, and print the counts."""
    servers = [Server(**server) for server in job.servers]
    load = SCENARIOS[job.scenario].load
    assert load is not None, "a scenario without a load is not counted"
    async with ARMS[job.arm].load().connect(servers[0].address) as client:
        tell({})
        await stdin_closed()
        await client.call("unary_echo", bytes(64))
        if job.params:
            await load(Bench([client], servers, job.params))
        tell({"client": switches(os.getpid()), "server": switches(servers[0].pid)})


if __name__ == "__main__":
    job = Job(**json.loads(sys.argv[1]))
    # A tracer that is killed lets go of what it traced: this process has to end by itself.
    signal.alarm(LOAD_TIMEOUT_S)
    # Before anything starts a thread: threads inherit it.
    os.sched_setaffinity(0, {job.cpu})
    uvloop.run(main(job))
