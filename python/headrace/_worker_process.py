"""One worker process as its parent sees it: started by name, told what to do, heard, waited for.

The two ends of a socket pair talk in lines of JSON; `_child.py` is the other end.

    parent                                          child
    the plan: engines by name, settings   --->
                                          <---      failed: kind, text; then it exits
                                          <---      ready: endpoints, address, instance_id
                                          <---      settled: routers are back
    do: drain, do: close                  --->
                                          <---      draining: in_flight, links; then it exits

When the parent is gone, however that came, its end closes and the child drains. Orders go this way and not
as signals, since others send signals too: a service manager that stops every process of a service at once
must not look like a second, impatient signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

INDEX_VARIABLE = "HEADRACE_WORKER_INDEX"
"""The environment variable in which a worker process finds its number, counted from 0."""

GRACE_S = 5.0
"""How much longer than its ``drain_timeout`` a process may take to end before it is made to."""
_CLOSE_S = 2.0
"""How long a process may take to end when it was told to close: callers are told, engines are cancelled."""
_LAST_WORDS_S = 1.0
"""How long to wait for the end of what an ended process said. Nobody waits, unless its engine has forked."""
_REPORT_BYTES_MAX = 1024 * 1024
"""Longest line of a child; it cuts its tracebacks to fit."""

_CHILD = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); "
    "from headrace._child import main; sys.exit(main())"
)
"""The program of a child: this very package, whatever lies in the current folder. The plan has the path on
which the engine is found."""


def say(text: str) -> None:
    """Print a line to standard error. A terminal that is gone keeps nobody from going on."""
    with contextlib.suppress(OSError):
        print(f"headrace: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a process could not begin to serve."""

    kind: str
    """``"ValueError"``, ``"TypeError"`` or ``"OSError"`` for what ``serve`` refuses, else empty."""
    text: str
    """The message, or a traceback when there is no kind."""


class WorkerProcess:
    """A worker process that was started. Ends by itself, by :meth:`end` or by :meth:`kill`.

    Args:
        index: its number.
        name: what it is called in messages.
        process: the process.
        writer: where orders go.
    """

    def __init__(
        self, index: int, name: str, process: asyncio.subprocess.Process, writer: asyncio.StreamWriter
    ) -> None:
        self._name = name
        self._process = process
        self._writer = writer
        self._ready = asyncio.Event()
        self._settled = asyncio.Event()
        self.index = index
        self.failure: Failure | None = None
        self.ready_at_s: float | None = None
        """The loop's time when it was ready."""
        self.links = 0
        """Routers that were connected when its drain began."""
        self.ended: asyncio.Future[None]
        """Done when the process has ended and everything that it said was heard."""

    @classmethod
    async def start(cls, index: int, name: str, plan: Mapping[str, Any]) -> Self:
        """Start a process.

        Args:
            index: its number; it finds it in its environment.
            name: what it is called in messages and in the list of processes.
            plan: what it serves, as `_child.py` reads it.

        Raises:
            OSError: the system refuses to start another process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_REPORT_BYTES_MAX)
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *_interpreter_options(),
                    *("-P", "-c", _CHILD, str(theirs.fileno()), name),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # Ctrl-C in a terminal reaches the parent alone, which tells the others.
                    start_new_session=True,
                    env={**os.environ, INDEX_VARIABLE: str(index)},
                )
            except BaseException:
                writer.close()
                raise
        writer.write(json.dumps(plan).encode() + b"\n")
        started = cls(index, name, process, writer)
        started.ended = asyncio.ensure_future(started._watch(reader))
        return started

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ending(self) -> str:
        """How the process ended and why, as the rest of a sentence."""
        if self.failure is not None:
            return f"could not serve: {self.failure.text}"
        code = self._process.returncode
        if code is None or code >= 0:
            return f"exited with code {code}"
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"

    async def is_ready(self) -> bool:
        """Wait until it serves; false when it has ended without that."""
        return await self._comes(self._ready)

    async def is_settled(self) -> bool:
        """Wait until as many routers are connected as its plan says, or would have come by now; false when
        it has ended before.
        """
        return await self._comes(self._settled)

    async def end(self, drain_s: float, close: asyncio.Event, kill: asyncio.Event) -> None:
        """Have it drain, and wait until it has ended, which it has in the end.

        Args:
            drain_s: seconds that its drain may take.
            close: when set, it closes at once; it also does when its time is up.
            kill: when set, it is killed if it has not closed yet; it also is after two seconds.
        """
        self._tell("drain")
        # One that does not serve yet has nothing to drain and ends at once.
        await self._ends_before(close, (drain_s if self._ready.is_set() else 0.0) + GRACE_S)
        self._tell("close")
        await self._ends_before(kill, _CLOSE_S)
        self.kill()
        await asyncio.wait({self.ended})

    def kill(self) -> None:
        """End it by SIGKILL, if it has not ended."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _tell(self, order: Literal["drain", "close"]) -> None:
        if not self.ended.done():
            self._writer.write(json.dumps({"do": order}).encode() + b"\n")

    async def _comes(self, event: asyncio.Event) -> bool:
        waiting = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({waiting, self.ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        return event.is_set()

    async def _ends_before(self, event: asyncio.Event, timeout_s: float) -> None:
        """Wait until the process has ended, the event is set or the time is up."""
        waiting = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({waiting, self.ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        hearing = asyncio.ensure_future(self._hear(reader))
        await self._process.wait()
        await asyncio.wait({hearing}, timeout=_LAST_WORDS_S)
        hearing.cancel()
        self._writer.close()

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        # A child that dies with an order unread resets the connection.
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                for kind, what in json.loads(line).items():
                    self._heard(kind, what)

    def _heard(self, kind: str, what: Any) -> None:
        match kind:
            case "ready":
                self.ready_at_s = asyncio.get_running_loop().time()
                self._ready.set()
                say(
                    f"serving {', '.join(what['endpoints'])} on {what['address']} "
                    f"(instance {what['instance_id']}); {self._name}, process {self.pid}"
                )
            case "settled":
                self._settled.set()
            case "draining":
                self.links = what["links"]
                say(f"{self._name} is draining, {what['in_flight']} requests in flight")
            case "failed":
                self.failure = Failure(what["kind"], what["text"])
            case _:
                raise ValueError(f"{self._name} said {kind!r}, which means nothing")


def _interpreter_options() -> list[str]:
    """The options that this interpreter was given, such as ``-O`` and ``-X dev``: what the standard library's
    own worker processes are given too.
    """
    options: list[str] = getattr(subprocess, "_args_from_interpreter_flags")()  # noqa: B009
    return options
