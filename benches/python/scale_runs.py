"""One run of one point: fresh processes for one arm, and the figures they gave.

All clients share one core and all servers another, however many there are: it is what a unit of work
costs that is measured, and not how much a larger machine would do.
"""

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from arms import Arm
from machine import Busy
from processes import RunFailed
from runs import Cores
from scale_curves import Curve
from scale_processes import loading, process_cpu_s, serving


@dataclass(frozen=True)
class Point:
    """What one run gave: figures, or the reason why there are none."""

    curve: str
    x: int
    arm: str
    repeat: int
    others_share: float
    figures: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None


async def run_point(curve: Curve, x: int, arm: Arm, repeat: int, cores: Cores, quick: bool) -> Point:
    """Start fresh processes, load them, end them; a failure is a result too."""
    before = Busy.read()
    figures: dict[str, float] = {}
    failure = None
    try:
        figures = await _figures(curve, x, arm, cores, quick)
    except RunFailed as why:
        failure = str(why)
    return Point(curve.name, x, arm.name, repeat, Busy.read().others_share(before), figures, failure)


async def _figures(curve: Curve, x: int, arm: Arm, cores: Cores, quick: bool) -> dict[str, float]:
    """Run the servers around the clients, let the clients go together, and join their figures."""
    async with AsyncExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="scale-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(temporary))
        servers = await asyncio.gather(
            *(
                stack.enter_async_context(serving(arm, folder, cores.server, "scale_server.py"))
                for _ in range(x if curve.many_servers else 1)
            )
        )
        job = {
            "arm": arm.name,
            "scenario": curve.name,
            "params": curve.params_at(x, arm.share, quick),
            "servers": [{"address": server.address, "pid": server.pid} for server in servers],
            "cpu": cores.client,
        }
        clients = await asyncio.gather(
            *(
                stack.enter_async_context(loading(arm, folder, "scale_client.py", job))
                for _ in range(x if curve.many_clients else 1)
            )
        )
        before_s = sum(process_cpu_s(server.pid) for server in servers)
        for client in clients:
            client.go()
        answers = await asyncio.gather(*(client.figures() for client in clients))
        servers_s = sum(process_cpu_s(server.pid) for server in servers) - before_s
        await asyncio.gather(*(server.stop() for server in servers))
    return answers[0] if len(answers) == 1 else _joined(answers, servers_s)


def _joined(answers: Sequence[Mapping[str, float]], servers_s: float) -> dict[str, float]:
    """Return the figures of many clients as one: sums of calls, medians of times.

    The servers' CPU is that of the whole run, warm-up included, as clients do not begin and end at the
    very same moment; so are the calls that it is divided by.
    """
    calls = sum(answer["calls"] for answer in answers)
    return {
        "calls": calls,
        "requests_per_s": sum(answer["requests_per_s"] for answer in answers),
        "client_us": sum(answer["client_us"] * answer["calls"] for answer in answers) / calls,
        "server_us": servers_s / sum(answer["calls_in_all"] for answer in answers) * 1e6,
        "p50_us": median(answer["p50_us"] for answer in answers),
        "p99_us": median(answer["p99_us"] for answer in answers),
        "p99_worst_us": max(answer["p99_us"] for answer in answers),
        "connect_ms": median(answer["connect_ms"] for answer in answers),
    }
