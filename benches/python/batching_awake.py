"""Keeps a core awake: `with awake(cpu)`. A process of the lowest class spins there, and gives way to any.

Waking a core that has gone to sleep takes 50 us and more in a virtual machine, now and then. Where a
function's time is compared with itself, that would count against whoever leaves the core alone for longest:
the bare loop.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LOOK_EVERY = 1_000_000


@contextmanager
def awake(cpu: int) -> Iterator[None]:
    """Keep a core awake while entered."""
    with subprocess.Popen([sys.executable, __file__, str(cpu)], stdout=subprocess.PIPE) as spinner:
        try:
            assert spinner.stdout is not None
            spinner.stdout.readline()
            yield
        finally:
            spinner.kill()


def spin(cpu: int) -> None:
    """Spin until whoever started this has gone."""
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    parent = os.getppid()
    print(flush=True)
    while os.getppid() == parent:
        for _ in range(_LOOK_EVERY):
            pass


if __name__ == "__main__":
    spin(int(sys.argv[1]))
