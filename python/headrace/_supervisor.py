"""The parent of worker processes: starts them, starts crashed ones again, restarts all one after the other,
and leaves none behind.

Each process has a slot, with an address of its own, and each slot a keeper: a task that starts the slot's
process again whenever it ends. A rolling restart takes a slot from its keeper for as long as it works on it,
so exactly one of the two starts processes in a slot. The processes themselves outlive both; only ``_end_all``
lets none of them live. Of the native runtime nothing is used here but the port for metrics, which asks the
processes by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Generator, Mapping
from typing import Any

from headrace._addresses import Addresses
from headrace._headrace import MergedPort
from headrace._metrics_folder import metrics_folder
from headrace._target import UsageError, name_of
from headrace._worker_process import Failure, WorkerProcess, say

_DRAIN_S = 30.0
"""The default ``drain_timeout`` of ``serve``."""

_OTHERS_GO_ON = "the others go on as they are and are not restarted; send SIGHUP again when they can be"


class WorkersFailed(RuntimeError):
    """Worker processes cannot serve: an import failed, or one crashed again and again."""


class Crashes:
    """When the process of one slot starts again after it ended unasked, and when not. Uses no clock.

    The pauses double from 0.1 s to 10 s and begin anew once a process has served for 10 s. Five ends within
    30 s are a crash loop; so are three processes in a row that never served, since one that takes a minute
    to load its model never ends five times within 30 s.
    """

    PAUSE_FIRST_S = 0.1
    PAUSE_MAX_S = 10.0
    STEADY_S = 10.0
    WINDOW_S = 30.0
    ENDS_MAX = 5
    UNREADY_MAX = 3

    def __init__(self) -> None:
        self._pause_s = self.PAUSE_FIRST_S
        self._ends_s: deque[float] = deque()
        self._unready = 0
        self.loop = ""
        """What makes it a crash loop; empty while it is none."""

    def ended(self, now_s: float, ready_at_s: float | None) -> float:
        """Note an end.

        Args:
            now_s: when.
            ready_at_s: since when it had served; ``None`` if it never did.

        Returns:
            Seconds until the next start.
        """
        self._unready = self._unready + 1 if ready_at_s is None else 0
        if ready_at_s is not None and now_s - ready_at_s >= self.STEADY_S:
            self._pause_s = self.PAUSE_FIRST_S
        self._ends_s.append(now_s)
        while self._ends_s[0] <= now_s - self.WINDOW_S:
            self._ends_s.popleft()
        if self._unready >= self.UNREADY_MAX:
            self.loop = f"ended {self.UNREADY_MAX} times in a row before it served"
        elif len(self._ends_s) >= self.ENDS_MAX:
            self.loop = f"ended {self.ENDS_MAX} times within {self.WINDOW_S:g} s"
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, self.PAUSE_MAX_S)
        return pause_s


class Slot:
    """The place of one worker process."""

    def __init__(self, index: int, address: str) -> None:
        self.index = index
        self.address = address
        self.process: WorkerProcess | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.has_served = False
        self.crashes = Crashes()


def supervise(engines: str | dict[str, str], address: str, workers: int, settings: Mapping[str, Any]) -> None:
    """Serve in worker processes until SIGTERM or Ctrl-C. Blocks.

    Args:
        engines: the name of the engine, or names by endpoint.
        address: as for ``run``.
        workers: how many processes.
        settings: every keyword of ``serve``, which has accepted them.

    Raises:
        WorkersFailed: they cannot serve.
        ValueError, TypeError, OSError: they refuse to.
    """
    rest = dict(settings)
    metrics: str | None = rest.pop("metrics", None)
    plan = {
        "engines": engines,
        "settings": {name: _carried(name, value) for name, value in rest.items()},
        "drain_s": float(settings.get("drain_timeout", _DRAIN_S)),
        "path": sys.path,
        "argv": sys.argv,
    }
    with (
        Addresses(address, workers) as addresses,
        _metrics_port(metrics, workers, insecure=bool(rest.get("insecure", False))) as sockets,
        asyncio.Runner() as runner,
    ):
        runner.run(_Supervisor(addresses.each, sockets, plan).run())


@contextlib.contextmanager
def _metrics_port(address: str | None, workers: int, *, insecure: bool) -> Generator[list[str]]:
    """Open the port for metrics and health of all worker processes, if there shall be one.

    Yields:
        The Unix sockets at which they shall answer, one for each; none without a port.
    """
    if address is None:
        yield []
        return
    with metrics_folder() as folder:
        sockets = [os.path.join(folder, str(index)) for index in range(workers)]
        port = MergedPort(address, insecure, sockets)
        say(f"metrics and health at {port.address}")
        try:
            yield sockets
        finally:
            port.close()


def _carried(name: str, value: Any) -> tuple[str, Any]:
    """A setting as the plan has it: a value as it is, or the name of something to import."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        target = name_of(value)
        if target is None:
            raise UsageError(
                f"{name}= cannot be given to worker processes: it is neither plain data nor something that "
                "can be imported by name"
            ) from None
        return "name", target
    return "value", value


class _Supervisor:
    def __init__(self, addresses: list[str], metrics_sockets: list[str], plan: dict[str, Any]) -> None:
        self._plan = plan
        self._metrics_sockets = metrics_sockets
        self._drain_s: float = plan["drain_s"]
        self._slots = [Slot(index, address) for index, address in enumerate(addresses)]
        self._restart = asyncio.Event()
        # Set one after the other, by one signal each.
        self._drain, self._close, self._kill = asyncio.Event(), asyncio.Event(), asyncio.Event()
        # The tasks that serve end by failing or by being cancelled.
        self._failed = asyncio.Event()
        self._said_why = False
        self._failure: BaseException | None = None

    async def run(self) -> None:
        rolling: asyncio.Task[None] | None = None
        with self._signals():
            try:
                for slot in self._slots:
                    self._give_to_keeper(slot)
                rolling = self._watched(self._restart_when_asked())
                await _either(self._drain, self._failed)
                # After a failure too the next signal means now.
                self._drain.set()
            finally:
                await self._end_all(rolling)
        if self._failure is not None:
            raise self._failure

    # --- signals ---

    @contextlib.contextmanager
    def _signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGTERM, signal.SIGINT]
        for number in numbers:
            loop.add_signal_handler(number, self._stop)
        # Under nohup it stays ignored.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self._hung_up, _has_terminal())
            numbers.append(signal.SIGHUP)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        for step in (self._drain, self._close, self._kill):
            if not step.is_set():
                step.set()
                return

    def _hung_up(self, had_terminal: bool) -> None:
        # A terminal that is closed sends the same signal as somebody who wants a restart.
        if had_terminal and not _has_terminal():
            # Not `_stop`: the shell and the system may both send it.
            self._drain.set()
        else:
            self._restart.set()

    # --- keeping processes running ---

    def _watched(self, work: Any) -> asyncio.Task[None]:
        """A task whose failure ends everything."""

        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and task.exception() is not None:
                self._failure = self._failure or task.exception()
                self._failed.set()

        task: asyncio.Task[None] = asyncio.ensure_future(work)
        task.add_done_callback(done)
        return task

    def _give_to_keeper(self, slot: Slot) -> None:
        slot.keeper = self._watched(self._keep(slot))

    async def _take_from_keeper(self, slot: Slot) -> None:
        if slot.keeper is not None:
            await _cancel(slot.keeper)
            slot.keeper = None

    async def _keep(self, slot: Slot) -> None:
        """Start the slot's process whenever there is none; return never."""
        while True:
            try:
                process = slot.process or await self._start(slot)
            except OSError as error:
                # The system has no process or memory to spare; it may have some later.
                ready_at_s, what = None, f"cannot be started: {error}"
            else:
                await process.is_ready()
                slot.has_served |= process.ready_at_s is not None
                await asyncio.wait({process.ended})
                slot.process = None
                if process.failure is not None and not slot.has_served:
                    # The next one would fail as this one did.
                    raise self._error(slot, process.failure)
                ready_at_s, what = process.ready_at_s, process.ending
            pause_s = slot.crashes.ended(asyncio.get_running_loop().time(), ready_at_s)
            if slot.crashes.loop:
                raise self._failing(
                    f"{self._name(slot)} {slot.crashes.loop}, and is given up; all workers stop. "
                    f"The last time it {what}"
                )
            say(f"{self._name(slot)} {what}; it starts again in {pause_s:g} s")
            await asyncio.sleep(pause_s)

    async def _start(self, slot: Slot, links: int = 0) -> WorkerProcess:
        plan: dict[str, Any] = {**self._plan, "address": slot.address, "links": links}
        if self._metrics_sockets:
            socket = f"unix:{self._metrics_sockets[slot.index]}"
            plan["settings"] = {**plan["settings"], "metrics": ("value", socket)}
        slot.process = await WorkerProcess.start(slot.index, self._name(slot), plan)
        return slot.process

    def _name(self, slot: Slot) -> str:
        return f"worker {slot.index} of {len(self._slots)}"

    def _error(self, slot: Slot, failure: Failure) -> Exception:
        match failure.kind:
            case "ValueError":
                return UsageError(failure.text)
            case "TypeError":
                return TypeError(failure.text)
            case "OSError":
                return OSError(failure.text)
            case _:
                return self._failing(f"{self._name(slot)} cannot serve:\n{failure.text}")

    def _failing(self, text: str) -> WorkersFailed:
        # Said now: the others drain before the exception is raised. What fails meanwhile adds nothing.
        if not self._said_why:
            self._said_why = True
            say(text)
        return WorkersFailed(text)

    # --- restarting one after the other ---

    async def _restart_when_asked(self) -> None:
        while True:
            await self._restart.wait()
            self._restart.clear()
            say(f"restarting {len(self._slots)} workers one after the other")
            for slot in self._slots:
                if not await self._replace(slot):
                    break
            else:
                say("all workers were restarted")

    async def _replace(self, slot: Slot) -> bool:
        """Drain the slot's process and start another; return when the routers are back at it. False when it
        ended before; if it did not even begin to serve, the slot stays empty.
        """
        await self._take_from_keeper(slot)
        links = 0
        if slot.process is not None:
            await slot.process.end(self._drain_s, self._close, self._kill)
            links = slot.process.links
            slot.process = None
        slot.crashes = Crashes()
        try:
            process = await self._start(slot, links)
        except OSError as error:
            return self._stays_down(slot, f"cannot be started: {error}")
        if await process.is_ready():
            slot.has_served = True
            # The next one drains only when this one can take its place: a router that found nobody here
            # tries again after a pause, and its calls must not find nobody at all.
            settled = await process.is_settled()
            self._give_to_keeper(slot)
            if not settled:
                say(f"{self._name(slot)} did not last; {_OTHERS_GO_ON}")
            return settled
        await asyncio.wait({process.ended})
        slot.process = None
        return self._stays_down(slot, process.ending)

    def _stays_down(self, slot: Slot, what: str) -> bool:
        say(f"{self._name(slot)} {what}: it stays down; {_OTHERS_GO_ON}")
        return False

    # --- ending ---

    async def _end_all(self, rolling: asyncio.Task[None] | None) -> None:
        """End every process. When this returns, or is cancelled, none is left."""
        try:
            if rolling is not None:
                await _cancel(rolling)
            for slot in self._slots:
                await self._take_from_keeper(slot)
            running = [slot.process for slot in self._slots if slot.process is not None]
            await asyncio.gather(
                *(process.end(self._drain_s, self._close, self._kill) for process in running)
            )
        finally:
            for slot in self._slots:
                if slot.process is not None:
                    slot.process.kill()


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended; its failure is somebody else's to look at."""
    task.cancel()
    await asyncio.wait({task})


async def _either(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
