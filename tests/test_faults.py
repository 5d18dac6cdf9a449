"""Faults of the network between a Python router and a Python worker. `rust/core/tests/faults` cuts the
conversation at every byte; this does so at some of them, where the event loop reads and writes the sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import headrace as hr
import pytest

from faults import PROGRAM, FaultProxy, fault_proxy
from sequence import Sequence
from support import GUARD, eventually, idle

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(not PROGRAM, reason="FAULTS WERE NOT TESTED: HEADRACE_FAULTPROXY names no program"),
]

LANES = 8
ROUTER = {"stream_window": 4096, "instance_timeout": GUARD, "timeout": None, "item_timeout": None}
"""Small windows, so that items travel in fragments. No timeout: only the end of the link can end a call."""

LONG = [40, 1700, 2500, 40]


class Net:
    """A worker whose engines keep a ledger, and proxies to it."""

    def __init__(self, worker: hr.Worker, ledger: Counter[str]) -> None:
        self.worker = worker
        self.ledger = ledger

    def check(self, request_id: str, outcome: str) -> None:
        """A request runs at most once, and exactly once if it was answered."""
        ran = self.ledger[request_id]
        assert ran <= 1, f"{request_id} ran {ran} times"
        assert ran == 1 or outcome == "lost", f"{request_id} was answered"


@contextlib.asynccontextmanager
async def net(**settings: Any) -> AsyncIterator[Net]:
    ledger: Counter[str] = Counter()

    async def stream(request, ctx):
        ledger[ctx.id] += 1
        items = Sequence()
        for size in request["sizes"]:
            yield items.next(size)
        if request["until_stopped"]:
            await ctx.stopped()
            yield items.next(10)

    async def unary(request, ctx):
        ledger[ctx.id] += 1
        return Sequence().next(request)

    async with hr.serve({"stream": stream, "unary": unary}, **settings) as worker:
        yield Net(worker, ledger)
        await eventually(lambda: idle(worker) and worker.stats()["links"] == 0)


async def read_all(call: Any, expected: int, *, stop: bool = False) -> str:
    """Read a stream to its end: "complete", or "lost" with its link."""
    items = Sequence()
    try:
        stream = await call
        if stop:
            stream.stop()
        async for item in stream:
            items.take(item)
    except hr.Disconnected as error:
        assert error.items == items.items <= expected
        return "lost"
    assert items.items == expected, "a stream looked complete and was not"
    assert stream.stopped == stop
    return "complete"


async def read_one(call: Any) -> str:
    try:
        async with call as stream:
            Sequence().take(await anext(stream))
    except hr.Disconnected:
        return "lost"
    return "cancelled"


async def take_single(call: Any) -> str:
    try:
        Sequence().take(await call)
    except hr.Disconnected:
        return "lost"
    return "complete"


async def converse(net: Net, proxy: FaultProxy, tag: str, **settings: Any) -> list[str]:
    """Two streams at once, a cancelled one and a unary call: how each ended."""
    async with hr.Router(proxy.address, **(ROUTER | settings)) as router:

        def call(name: str, sizes: list[int], until_stopped: bool = False):
            request = {"sizes": sizes, "until_stopped": until_stopped}
            return router.generate(request, endpoint="stream", request_id=f"{tag}/{name}")

        async with asyncio.timeout(3 * GUARD):
            outcomes = dict(
                zip(
                    ("long", "stopped"),
                    await asyncio.gather(
                        read_all(call("long", LONG), len(LONG)),
                        read_all(call("stopped", [10, 10], True), 3, stop=True),
                    ),
                    strict=True,
                )
            )
            outcomes["cancelled"] = await read_one(call("cancelled", [10], True))
            unary = router.call(10, endpoint="unary", request_id=f"{tag}/unary")
            outcomes["unary"] = await take_single(unary)
        await eventually(lambda: idle(router))
        assert not any(instance.in_flight for instance in router.instances())
    for name, outcome in outcomes.items():
        net.check(f"{tag}/{name}", outcome)
    return list(outcomes.values())


async def recorded(net: Net) -> dict[str, int]:
    """Bytes of a conversation without faults, each way."""
    async with fault_proxy(net.worker.address) as proxy:
        assert await converse(net, proxy, "recorded") == ["complete", "complete", "cancelled", "complete"]
        (record,) = await proxy.records()
        return {way: record[way] for way in ("to_server", "to_client")}


async def cut(net: Net, fault: str, strides: dict[str, int], **settings: Any) -> None:
    """Hold a conversation for every so many bytes each way, its first connection cut there."""
    lengths = await recorded(net)
    assert lengths["to_client"] > 4000
    jobs = [(way, at) for way, stride in strides.items() for at in range(0, lengths[way], stride)]
    count = len(jobs)

    async def lane() -> int:
        async with fault_proxy(net.worker.address) as proxy:
            while jobs:
                way, at = jobs.pop()
                await proxy.plan({"first": {way: {fault: at}}})
                await converse(net, proxy, f"{way} {at}", **settings)
            return sum(record["fired"] == fault for record in await proxy.records())

    fired = sum(await asyncio.gather(*(lane() for _ in range(LANES))))
    # The last bytes of one conversation need not come in another.
    assert fired >= 0.9 * count, f"only {fired} of {count} faults came about"


@pytest.mark.parametrize("fault", ["reset", "half_close"])
async def test_wherever_a_link_is_cut_every_call_resolves_and_none_runs_twice(fault):
    async with net() as its_net:
        await cut(its_net, fault, {"to_server": 17, "to_client": 67})


async def test_a_black_hole_is_given_up_by_liveness_alone():
    quick = {"ping_interval": 0.25, "ping_timeout": 0.25}
    async with net(**quick) as its_net:
        await cut(its_net, "black_hole", {"to_server": 199, "to_client": 997}, **quick)


@pytest.mark.parametrize("slice_bytes", [1, 13])
async def test_slices_change_nothing(slice_bytes):
    script = {"slice": slice_bytes, "delay_ms": 1, "jitter_ms": 2, "seed": slice_bytes}
    async with net() as its_net:
        plan = {"every": {"to_server": script, "to_client": script}}
        async with fault_proxy(its_net.worker.address, plan) as proxy:
            outcomes = await converse(its_net, proxy, "sliced")
            assert outcomes == ["complete", "complete", "cancelled", "complete"]


async def test_a_reset_right_behind_bytes_is_noticed_at_once_though_the_loop_is_busy():
    """uvloop calls the reader of a socket that has an error once more and never again, and that call finds
    the bytes before the error. Only a loop that is idle between has the ticker read on for it.
    """

    async def endless(request):
        while True:
            yield 1
            await asyncio.sleep(0)

    async def counting(request):
        for number in range(1000):
            yield number
            await asyncio.sleep(0.001)

    async def read(router: hr.Router, endpoint: str) -> None:
        async for _ in router.generate(None, endpoint=endpoint):
            pass

    engines = {"endless": endless, "counting": counting}
    async with hr.serve(engines) as worker, hr.Router(worker.address) as other:
        busy = asyncio.ensure_future(read(other, "endless"))
        async with fault_proxy(worker.address, {"every": {"to_client": {"reset": 300}}}) as proxy:
            for _ in range(10):
                async with hr.Router(proxy.address, ping_interval=1, ping_timeout=1) as router:
                    with pytest.raises(hr.Disconnected) as caught:
                        await read(router, "counting")
                    # Given up as silent, it would have kept its calls waiting for two seconds.
                    assert "silent" not in caught.value.reason
        busy.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await busy


async def test_faults_drawn_from_seeds_resolve_every_call_and_run_none_twice():
    given = os.environ.get("HEADRACE_SEED")
    seeds = [int(given)] if given else list(range(48))
    menu = {
        "delay_max_ms": 2,
        "jitter_max_ms": 2,
        "slice_max": 4096,
        "cut_percent": 30,
        "cuts": ["reset", "half_close"],
        "cut_before": 6000,
    }
    async with net() as its_net:

        async def lane() -> None:
            async with fault_proxy(its_net.worker.address) as proxy:
                while seeds:
                    seed = seeds.pop()
                    await proxy.plan({"seed": seed, "menu": menu})
                    await converse(its_net, proxy, f"HEADRACE_SEED={seed}")

        await asyncio.gather(*(lane() for _ in range(LANES)))
