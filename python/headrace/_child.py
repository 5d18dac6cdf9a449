"""What runs in a worker process, which ``run(workers=N)`` starts. `_worker_process.py` is the parent's end
and says what the two tell each other.

It never outlives its parent for long: a thread listens to the parent while the engine is imported and while
the loop is blocked too, and ends the process when nobody is left who would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, cast

from headrace import _running
from headrace._target import UsageError, load, loaded
from headrace._worker_process import GRACE_S
from headrace.worker import Worker

_RECONNECT_S = 12.0
"""Longest time until a router tries again to connect: its longest pause, 10 s, and the jitter on it."""
_LOOK_S = 0.02
"""How often it is looked whether the routers are back."""
_TEXT_MAX = 100_000
"""Characters of a traceback that are told, the last ones; each takes at most 6 bytes as JSON."""


class Parent:
    """The parent process, as its child sees it.

    Args:
        line: the socket to it.
    """

    def __init__(self, line: socket.socket) -> None:
        # Programs that the engine starts must not hold the line open.
        line.set_inheritable(False)
        self._line = line
        self._lines = line.makefile("r", encoding="utf-8")
        self._lock = threading.Lock()
        self.is_ready = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._settling: asyncio.Future[None] | None = None
        self.stop = _running.Stop()
        self.plan: dict[str, Any] = {}

    def follow(self) -> bool:
        """Read the plan, and obey from then on; false when the parent has gone already."""
        line = self._lines.readline()
        if not line.endswith("\n"):
            return False
        self.plan = json.loads(line)
        threading.Thread(target=self._follow, name="headrace-parent", daemon=True).start()
        return True

    def obeyed_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say on which loop orders are carried out."""
        self._loop = loop

    def failed(self, kind: str, text: str) -> None:
        """Tell why this process cannot serve."""
        self._tell("failed", {"kind": kind, "text": text[-_TEXT_MAX:].rstrip()})

    def serving(self, serving: Worker, /) -> None:
        """Tell that the worker listens, and later that the routers are back."""
        with self._lock:
            self.is_ready = True
        self._tell(
            "ready",
            {
                "endpoints": serving.endpoints,
                "address": serving.address,
                "instance_id": serving.instance_id,
            },
        )
        self._settling = asyncio.ensure_future(self._settle(serving))

    def draining(self, serving: Worker, /) -> None:
        """Tell that the drain has begun."""
        stats = serving.stats()
        in_flight = stats["running"] + stats["queued"]
        self._tell("draining", {"in_flight": in_flight, "links": stats["links"]})

    async def _settle(self, serving: Worker) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _RECONNECT_S
        # Nobody is told when a link comes.
        while serving.stats()["links"] < self.plan["links"] and loop.time() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        self._tell("settled", True)

    def _tell(self, kind: str, what: Any) -> None:
        # Nobody hears it when the parent has gone, which `_follow` sees too.
        with contextlib.suppress(OSError):
            self._line.sendall(json.dumps({kind: what}).encode() + b"\n")

    def _follow(self) -> None:
        with contextlib.suppress(OSError):
            for line in self._lines:
                self._obey(json.loads(line)["do"])
        self._obey("drain")
        time.sleep(self.plan["drain_s"] + GRACE_S)
        os._exit(1)

    def _obey(self, order: str) -> None:
        with self._lock:
            # Nothing is in flight yet, and an import cannot be interrupted in another way.
            if not self.is_ready:
                os._exit(0)
        stop = self.stop.drain.set if order == "drain" else self.stop.now
        if self._loop is not None:
            # A loop that is closed has nothing left to stop.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(stop)


def _settings(carried: Mapping[str, Any]) -> dict[str, Any]:
    return {name: load(value) if how == "name" else value for name, (how, value) in carried.items()}


async def _serve(parent: Parent, engine: Any, settings: dict[str, Any]) -> None:
    parent.obeyed_on(asyncio.get_running_loop())
    await _running.serve_until_stopped(engine, parent.plan["address"], settings, parent.stop, parent)


def _refused(error: BaseException) -> str:
    """The kind of an error that ``serve`` raises for what cannot be served; empty for another."""
    for kind in (ValueError, TypeError, OSError):
        if isinstance(error, kind):
            return kind.__name__
    return ""


def _ignored(number: int, frame: object) -> None:
    """A handler that does nothing: unlike an ignored signal, it is not passed on to the engine's programs."""


def main() -> int:
    """Serve what the parent says until it says otherwise; returns the exit code."""
    # Asking one worker process to restart means nothing, and must not end it.
    signal.signal(signal.SIGHUP, _ignored)
    _running.be_worker_process()
    parent = Parent(socket.socket(fileno=int(sys.argv[1])))
    if not parent.follow():
        return 0
    sys.path[:] = cast("list[str]", parent.plan["path"])
    sys.argv[:] = cast("list[str]", parent.plan["argv"])
    try:
        engine = loaded(parent.plan["engines"])
        settings = _settings(parent.plan["settings"])
    except UsageError as error:
        parent.failed("ValueError", str(error))
        return 1
    except BaseException:
        parent.failed("", traceback.format_exc())
        return 1
    try:
        with asyncio.Runner(loop_factory=_running.loop_factory()) as runner:
            runner.run(_serve(parent, engine, settings))
    except BaseException as error:
        if parent.is_ready:
            raise
        kind = _refused(error)
        parent.failed(kind, str(error) if kind else traceback.format_exc())
        return 1
    return 0
