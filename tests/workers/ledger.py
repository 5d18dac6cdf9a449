"""A worker that writes a ledger: a line for each execution, appended by one write, so that the lines of
several processes do not mix. Arguments: the address and the ledger's file. Drains on SIGTERM.

It listens as soon as the address is free: the worker before it may still be about to leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import headrace as hr

from sequence import Sequence

ADDRESS, FILE = sys.argv[1:]
LEDGER = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
PATIENCE = 20.0


def note(ctx: hr.Context) -> None:
    os.write(LEDGER, f"{ctx.id}\n".encode())


async def stream(request, ctx):
    note(ctx)
    items = Sequence()
    for number in range(request["items"]):
        item = items.next(request["size"])
        if number < request["skip"]:
            continue
        yield item
        if ctx.is_stopped:
            return
        if request["gap"]:
            await asyncio.sleep(request["gap"])


def threaded(request, ctx):
    note(ctx)
    items = Sequence()
    for number in range(request["items"]):
        item = items.next(request["size"])
        if number < request["skip"]:
            continue
        yield item
        if ctx.is_stopped:
            return


async def unary(request, ctx):
    note(ctx)
    await asyncio.sleep(request["gap"])
    return Sequence().next(request["size"])


def main() -> None:
    engines = {"stream": stream, "threaded": threaded, "unary": unary}
    until = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError):
            hr.run(engines, ADDRESS, ping_interval=0.5, ping_timeout=0.5, drain_timeout=1.0)
            return
        assert time.monotonic() < until, f"{ADDRESS} is never free"
        time.sleep(0.02)


main()
