"""What tests of CUDA streams share: the stand-in for the driver, programs that run with it in a process of
their own, and pools that leave nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from headrace import cuda

from support import GUARD, WORKERS, eventually, python

FAKE_DRIVER = os.environ.get("HEADRACE_FAKE_DRIVER", "")
"""The shared object that stands in for the driver; `make test-python` builds it."""

needs_fake_driver = pytest.mark.skipif(not FAKE_DRIVER, reason="HEADRACE_FAKE_DRIVER names no library")

PRELUDE = """
import asyncio, ctypes, gc, os, sys, threading, time
import headrace as hr
from headrace import cuda

if sys.argv[1] == "uvloop":
    from uvloop import new_event_loop
else:
    new_event_loop = asyncio.SelectorEventLoop

def run(main):
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(asyncio.wait_for(main(), 20))

async def eventually(holds):
    while not holds():
        await asyncio.sleep(0.001)

def raises(error, call):
    try:
        call()
    except error as raised:
        return raised
    raise AssertionError(f"{call} did not raise {error}")

async def fails(error, awaitable):
    try:
        await awaitable
    except error as raised:
        return raised
    raise AssertionError(f"{awaitable} did not raise {error}")
"""


@contextlib.asynccontextmanager
async def pooled(**settings: Any) -> AsyncIterator[cuda.StreamPool]:
    """A pool of a simulated device. A test that passes leaves nothing lent, and no memory in use."""
    pool = cuda.StreamPool(backend="sim", **settings)
    yield pool
    await eventually(lambda: (stats := pool.stats()).in_use + stats.draining + stats.waiting == 0)
    await eventually(lambda: pool.stats().device_bytes == 0)
    assert await pool.close(GUARD)


@contextlib.contextmanager
def stopped(pool: cuda.StreamPool) -> Iterator[None]:
    """Time stands still on the simulated device: work that takes any is not done before the block is left."""
    pool._stop(True)
    try:
        yield
    finally:
        pool._stop(False)


def library_folder(*, without: str = "") -> tempfile.TemporaryDirectory[str]:
    """A folder with the stand-in under the driver's name, perhaps without one of its functions."""
    folder = tempfile.TemporaryDirectory(prefix="headrace-driver-")
    target = Path(folder.name) / "libcuda.so.1"
    if without:
        name = without.encode()
        library = Path(FAKE_DRIVER).read_bytes()
        assert library.count(b"\0" + name + b"\0") >= 1
        # The loader finds functions by name, and nobody asks for this one.
        target.write_bytes(library.replace(b"\0" + name + b"\0", b"\0" + name[:-1] + b"_\0"))
    else:
        shutil.copy(FAKE_DRIVER, target)
    return folder


def hangs(code: str, seconds: float = 2.0) -> str:
    """Run a program that is to hang, with the stand-in for the driver, for so long; what it has printed."""
    with library_folder() as folder:
        environment = {**os.environ, "PYTHONPATH": str(WORKERS), "LD_LIBRARY_PATH": folder}
        with python("-c", PRELUDE + code, "asyncio", env=environment) as process:
            try:
                raise AssertionError(f"it ended: {process.output(seconds)}")
            except subprocess.TimeoutExpired as expired:
                return (expired.stdout or b"").decode().strip()


def with_driver(code: str, loop: str = "asyncio", *, without: str = "", **faults: Any) -> str:
    """Run a program with the stand-in for the driver, in a process of its own; what it prints. It must end by
    itself, with nothing on standard error.
    """
    with library_folder(without=without) as folder:
        environment = {**os.environ, "PYTHONPATH": str(WORKERS), "LD_LIBRARY_PATH": folder}
        environment.update({f"HEADRACE_FAKECUDA_{name}": str(value) for name, value in faults.items()})
        with python("-c", PRELUDE + code, loop, env=environment) as process:
            exit_code, out, err = process.output(2 * GUARD)
    assert (exit_code, err) == (0, ""), (exit_code, out, err)
    return out
