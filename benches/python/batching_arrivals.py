"""Items that arrive by themselves: a process on the other core writes at the moments of a Poisson process.

`batching_arrivals.py CPU RATE SECONDS SEED` waits for a line on its standard input and then writes 8 bytes
for each arrival, the moment by the monotonic clock in ns. It never sleeps, so that it is on time; the
caller's loop sleeps and is woken as by a socket.
"""

import asyncio
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable

_READ_BYTES = 1 << 16
_STAMP = struct.Struct("<q")


def write_arrivals(rate: float, seconds: float, seed: int) -> None:
    """Write every arrival when it is due, or at once if it is due already."""
    gaps = random.Random(seed)
    due_ns = start_ns = time.monotonic_ns()
    while (due_ns := due_ns + int(gaps.expovariate(rate) * 1e9)) < start_ns + seconds * 1e9:
        while time.monotonic_ns() < due_ns:
            pass
        os.write(1, _STAMP.pack(due_ns))


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start the other process. This blocks, but nothing is measured yet."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


async def arrivals(
    cpu: int, rate: float, seconds: float, seed: int, arrived: Callable[[int], object]
) -> None:
    """Call `arrived` on the loop's thread with the moment of each arrival, until there are no more."""
    command = [sys.executable, __file__, str(cpu), str(rate), str(seconds), str(seed)]
    loop = asyncio.get_running_loop()
    with _start(command) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        from_writer = writer.stdout.fileno()
        ended = loop.create_future()

        def read() -> None:
            data = os.read(from_writer, _READ_BYTES)
            for (moment_ns,) in _STAMP.iter_unpack(data):
                arrived(moment_ns)
            if not data:
                loop.remove_reader(from_writer)
                ended.set_result(None)

        loop.add_reader(from_writer, read)
        writer.stdin.write(b"\n")
        await ended


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[1])})
    sys.stdin.readline()
    write_arrivals(float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
