"""A process that only serves: ``run``."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from typing import Any, Protocol

from headrace._target import loaded
from headrace.worker import Worker, serve


def run(engine: Any, address: str = "127.0.0.1:0", **settings: Any) -> None:
    """Serve engines until SIGTERM or Ctrl-C, then drain and return. Blocks.

    The first signal drains: new requests are refused, those in flight finish within ``drain_timeout``. A
    second signal closes at once. Prints one line when the worker listens. Uses uvloop if it is installed.

    Args:
        engine: as for :func:`serve`, or the name ``"module:engine"`` of one, or a dictionary with such names.
        address: as for :func:`serve`.
        settings: every keyword of :func:`serve`.

    Raises:
        ValueError, TypeError, OSError: as :func:`serve`; ValueError also for a name that names nothing.
    """
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve_until_stopped(loaded(engine), address, settings, Stop(), _Printed()))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Makes the loop of a process that only serves: uvloop's if it is installed."""
    with contextlib.suppress(ModuleNotFoundError):
        import uvloop

        return uvloop.new_event_loop
    return None


class Stop:
    """What a serving process was told: first to drain, then to close."""

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.close = asyncio.Event()
        self._was_signalled = False

    def signalled(self) -> None:
        """The first signal drains, a second one closes. What was told in another way is no signal."""
        if self._was_signalled:
            self.close.set()
        self._was_signalled = True
        self.drain.set()

    def now(self) -> None:
        """Close, whatever was told before."""
        self.drain.set()
        self.close.set()


class Reports(Protocol):
    """Whoever wants to know how a serving process gets on."""

    def serving(self, serving: Worker, /) -> None:
        """The worker listens."""

    def draining(self, serving: Worker, /) -> None:
        """Its drain begins."""


class _Printed:
    """Reports on standard error."""

    def serving(self, serving: Worker, /) -> None:
        names = ", ".join(serving.endpoints)
        print(
            f"headrace: serving {names} on {serving.address} (instance {serving.instance_id}); "
            "press Ctrl-C to drain and stop",
            file=sys.stderr,
            flush=True,
        )

    def draining(self, serving: Worker, /) -> None:
        running = serving.stats()["running"] + serving.stats()["queued"]
        print(f"headrace: draining, {running} requests in flight", file=sys.stderr, flush=True)


async def serve_until_stopped(
    engine: Any, address: str, settings: dict[str, Any], stop: Stop, reports: Reports
) -> None:
    """Serve until told to stop, by a signal or otherwise, then drain.

    Args:
        engine, address, settings: as for :func:`serve`.
        stop: what is told; signals tell it too.
        reports: told what happens.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.signalled)
    async with serve(engine, address, **settings) as worker:
        reports.serving(worker)
        await stop.drain.wait()
        reports.draining(worker)
        drained = asyncio.ensure_future(worker.drain())
        now = asyncio.ensure_future(stop.close.wait())
        await asyncio.wait((drained, now), return_when=asyncio.FIRST_COMPLETED)
        for waiting in (drained, now):
            waiting.cancel()
        await asyncio.gather(drained, now, return_exceptions=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
