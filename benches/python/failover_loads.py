"""What the caller of a failover run does: reads streams while a worker is lost, or asks for too much.

A load is given the workers of its run and ends with figures. What contradicts the promises of Headrace fails
the run, whose times are worth nothing: an item that comes twice, a stream lost though its worker is not.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import headrace

from bench import Figures, Server, percentile

Load = Callable[[Sequence[Server], Mapping[str, Any]], Awaitable[Figures]]

# Every stream has brought so many items before a worker is lost, and they then lie anywhere between two.
ITEMS_BEFORE = 5

# Calls of the overload begin at this interval, as many as are due.
ARRIVALS_S = 0.001


def rest(request: dict[str, Any], items: list[int]) -> dict[str, Any]:
    """Return the request for what is missing of a stream of numbers."""
    return {**request, "start": request["start"] + len(items)}


@dataclass
class Reader:
    """One stream of numbers, read until it has outlived the loss of a worker, or was lost with it."""

    router: headrace.Router
    request: dict[str, Any]
    resume: bool
    settled: asyncio.Event
    instance_id: str | None = None
    items: int = 0
    warm: asyncio.Event = field(default_factory=asyncio.Event)
    met: asyncio.Event = field(default_factory=asyncio.Event)
    met_ns: int = 0
    resumed: bool = False

    async def read(self) -> None:
        """Read; every number has to come once and in order."""
        call = self.router.generate(self.request, endpoint="count", resume=rest if self.resume else None)
        try:
            async with call as stream:
                self.instance_id = stream.instance_id
                async for item in stream:
                    if stream.resumed and not self.resumed:
                        self.resumed = True
                        self._meet()
                    if item != self.items:
                        raise RuntimeError(f"item {item} came in the place of {self.items}")
                    self.items += 1
                    if self.items == ITEMS_BEFORE:
                        self.warm.set()
                    if self.settled.is_set():
                        return
        except headrace.Disconnected:
            self._meet()
            return
        raise RuntimeError("a stream without an end has ended")

    def _meet(self) -> None:
        """Note when the stream was resumed, or lost."""
        self.met_ns = time.monotonic_ns()
        self.met.set()


async def lose(servers: Sequence[Server], params: Mapping[str, Any]) -> Figures:
    """Send one worker a signal under streams to all; time each of its streams until it goes on, or fails."""
    router = headrace.Router(
        [server.address for server in servers], policy="round_robin", **params.get("settings", {})
    )
    settled = asyncio.Event()
    async with router:
        await router.wait_for_instances(len(servers))
        request = {"start": 0, "gap_s": params["gap_s"]}
        readers = [Reader(router, request, params["resume"], settled) for _ in range(params["streams"])]
        tasks = [asyncio.create_task(reader.read()) for reader in readers]
        await _all(tasks, [reader.warm.wait() for reader in readers])
        victim_id = next(
            each.instance_id for each in router.instances() if each.address == servers[0].address
        )
        lost = [reader for reader in readers if reader.instance_id == victim_id]
        spared = [reader for reader in readers if reader.instance_id != victim_id]
        start_ns = time.monotonic_ns()
        os.kill(servers[0].pid, getattr(signal, params["signal"]))
        await _all(tasks, [reader.met.wait() for reader in lost])
        settled.set()
        await asyncio.gather(*tasks)
    if any(reader.met.is_set() for reader in spared):
        raise RuntimeError("a stream of another worker was lost too")
    if any(reader.resumed is not params["resume"] for reader in lost):
        raise RuntimeError("a stream was lost that was to be resumed, or resumed without being asked to")
    took_ms = [(reader.met_ns - start_ns) / 1e6 for reader in lost]
    return {
        "lost": float(len(lost)),
        "p50_ms": percentile(took_ms, 50),
        "p99_ms": percentile(took_ms, 99),
    }


async def _all(tasks: Sequence[asyncio.Task[None]], waits: Sequence[Coroutine[Any, Any, Any]]) -> None:
    """Wait for all of `waits`, or raise what a task fails with meanwhile."""
    waiting = asyncio.gather(*waits)
    failing = asyncio.gather(*tasks)
    await asyncio.wait({waiting, failing}, return_when=asyncio.FIRST_COMPLETED)
    if failing.done():
        failing.result()
    await waiting


@dataclass
class Outcomes:
    """How calls ended, and how long those took that did."""

    router: headrace.Router
    endpoint: str
    work_s: float
    done_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)

    async def call(self) -> None:
        """Call once."""
        start_ns = time.monotonic_ns()
        try:
            await self.router.call(self.work_s, endpoint=self.endpoint)
            into = self.done_ms
        except headrace.Overloaded:
            into = self.refused_ms
        into.append((time.monotonic_ns() - start_ns) / 1e6)


async def overload(servers: Sequence[Server], params: Mapping[str, Any]) -> Figures:
    """Find the most that the workers do, then ask for several times as much, whatever comes back."""
    async with headrace.Router([server.address for server in servers]) as router:
        await router.wait_for_instances(len(servers))
        warm_up, peak_time, outcomes = (
            Outcomes(router, params["endpoint"], params["work_s"]) for _ in range(3)
        )
        await _peak_per_s(warm_up, params["callers"], params["warm_up_s"])
        peak = await _peak_per_s(peak_time, params["callers"], params["peak_s"])
        before = router.stats()["retries_total"]
        calls: list[asyncio.Task[None]] = []
        start = time.monotonic()
        while (passed_s := time.monotonic() - start) < params["overload_s"]:
            due = int(passed_s * peak * params["times"])
            calls.extend(asyncio.create_task(outcomes.call()) for _ in range(due - len(calls)))
            await asyncio.sleep(ARRIVALS_S)
        goodput = len(outcomes.done_ms) / passed_s
        await asyncio.gather(*calls)
        return {
            "peak_per_s": peak,
            "offered_of_peak": len(calls) / passed_s / peak,
            "goodput_of_peak": goodput / peak,
            "refused_share": len(outcomes.refused_ms) / len(calls),
            "refused_p50_ms": percentile(outcomes.refused_ms, 50),
            "refused_p99_ms": percentile(outcomes.refused_ms, 99),
            "done_p50_ms": percentile(outcomes.done_ms, 50),
            "done_p99_ms": percentile(outcomes.done_ms, 99),
            "retries_per_call": (router.stats()["retries_total"] - before) / len(calls),
        }


async def _peak_per_s(outcomes: Outcomes, callers: int, seconds: float) -> float:
    """Return how many calls a second are done for callers that each have one in flight."""
    start = time.monotonic()

    async def again_and_again() -> None:
        while time.monotonic() - start < seconds:
            await outcomes.call()

    await asyncio.gather(*(again_and_again() for _ in range(callers)))
    return len(outcomes.done_ms) / (time.monotonic() - start)
