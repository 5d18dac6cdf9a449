"""The loading process of S7: `first_response.py JOB`, lean so that it times only what it must.

Its clock starts before anything but `time` is imported here, and stops at the first response. The
interpreter's own start lies before that; the runner's clock has it in `from_spawn_ms`.
"""

import time

START_NS = time.perf_counter_ns()

import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import uvloop  # noqa: E402


async def main(module: str, address: str, spawned_ns: int) -> None:
    """Import the arm, connect, call once, and print the figures as one JSON line."""
    async with importlib.import_module(module).connect(address) as client:
        await client.call("unary_echo", bytes(64))
        first_ns = time.perf_counter_ns()
        monotonic_ns = time.monotonic_ns()
        import usage

        used = usage.read()
        figures = {
            "first_ms": (first_ns - START_NS) / 1e6,
            "from_spawn_ms": (monotonic_ns - spawned_ns) / 1e6,
            "client_cpu_s": used["cpu_s"],
            "client_peak_rss_mib": used["peak_rss_kib"] / 1024,
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    job: dict[str, Any] = json.loads(sys.argv[1])
    os.sched_setaffinity(0, {job["cpu"]})
    uvloop.run(main(job["module"], job["address"], job["spawned_ns"]))
