"""A process that only serves: ``run``, in this process or in worker processes of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from typing import Any, Protocol

from headrace._target import loaded, named
from headrace.worker import Worker, serve

WORKERS_MAX = 1024
"""Most worker processes of one parent: beyond any machine's cores, so more is a slip."""

_worker_process = False


def run(engine: Any, address: str = "127.0.0.1:0", *, workers: int = 1, **settings: Any) -> None:
    """Serve engines until SIGTERM or Ctrl-C, then drain and return. Blocks.

    The first signal drains: new requests are refused, those in flight finish within ``drain_timeout``. A
    second signal closes at once. Prints one line when the worker listens. Uses uvloop if it is installed.

    With several ``workers`` each is a process of its own, and prints its line when it listens. One that
    crashes is started again at the same address, after a pause that grows from 0.1 s to 10 s. SIGHUP
    restarts them one after the other, each drained first and back before it is the next one's turn. None
    outlives this process, however it ends.

    Args:
        engine: as for :func:`serve`, or the name ``"module:engine"`` of one, or a dictionary with such names.
            Worker processes import their engines, so each must have a name or be importable under its own;
            a module that calls ``run`` as it is imported needs ``if __name__ == "__main__":`` around it.
        address: as for :func:`serve`. With several workers ``"host:port"`` is the first of as many
            consecutive ports, port 0 gives each a free one, and ``"unix:/path"`` stands for ``/path.0``,
            ``/path.1`` and so on.
        workers: how many processes serve, 1 to 1024; with 1, this one does. Others find their number,
            counted from 0, in the environment variable ``HEADRACE_WORKER_INDEX``.
        settings: every keyword of :func:`serve`. Worker processes take what JSON can say and what can be
            imported by name. ``metrics`` is one port for all of them: this process opens it, asks them, and
            tells them apart by the label ``worker_process``, their number.

    Raises:
        ValueError, TypeError, OSError: as :func:`serve`; ValueError also for an engine or a setting that
            worker processes cannot import.
        RuntimeError: a worker process could not import its engine (the message has the traceback), or
            crashed five times within 30 s, or three times in a row before it listened. Or this is a worker
            process already.
    """
    if _worker_process:
        raise RuntimeError(
            "run() was called by a module that a worker process imports: "
            'put the call under if __name__ == "__main__":'
        )
    if not 1 <= workers <= WORKERS_MAX:
        raise ValueError(f"workers must be 1 to {WORKERS_MAX}, not {workers}")
    if workers > 1:
        # Imported here, since few programs need it and all would wait for it.
        from headrace import _supervisor

        engines = named(engine)
        # Refuses now what every worker process would refuse.
        serve(_nothing, address, **settings)
        _supervisor.supervise(engines, address, workers, settings)
        return
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve_until_stopped(loaded(engine), address, settings, Stop(), _Printed()))


async def _nothing(request: Any) -> None:
    """An engine in the place of one that is not imported here."""


def be_worker_process() -> None:
    """Mark this process as a worker process, in which :func:`run` must not be called."""
    global _worker_process
    _worker_process = True


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
        if serving.metrics_address is not None:
            print(f"headrace: metrics and health at {serving.metrics_address}", file=sys.stderr, flush=True)

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
