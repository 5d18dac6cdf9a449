"""One run: fresh processes for one arm and one scenario, and the figures they gave."""

import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic_ns
from typing import Any

from arms import Arm
from machine import Busy
from processes import RunFailed, ServerProcess, run_client, server
from scenarios import Scenario


@dataclass(frozen=True)
class Cores:
    """The core that each side is pinned to."""

    client: int
    server: int


@dataclass(frozen=True)
class Result:
    """What one run gave: figures, or the reason why there are none."""

    scenario: str
    arm: str
    repeat: int
    others_share: float
    figures: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None


async def run_once(scenario: Scenario, arm: Arm, repeat: int, cores: Cores, quick: bool) -> Result:
    """Start fresh processes, load them, end them; a failure is a result too.

    The processes of a run share a folder for temporary files, so that peers which meet in a folder
    find each other there and find nobody else. It goes with the run.
    """
    params = scenario.params_for(arm.share, quick)
    before = Busy.read()
    figures: dict[str, float] = {}
    failure = None
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        try:
            figures = await _figures(scenario, arm, cores, params, Path(folder))
        except RunFailed as why:
            failure = str(why)
    others_share = Busy.read().others_share(before)
    return Result(scenario.name, arm.name, repeat, others_share, figures, failure)


async def _figures(
    scenario: Scenario, arm: Arm, cores: Cores, params: Mapping[str, Any], folder: Path
) -> dict[str, float]:
    """Run the servers around the client, and join their figures."""
    server_cpu = cores.client if scenario.one_core else cores.server
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(server(arm, folder, server_cpu))
            for _ in range(scenario.servers if arm.has_server else 0)
        ]
        if scenario.load is None:
            figures = await _first_responses(arm, servers, cores, params["processes"], folder)
        else:
            job = {
                "arm": arm.part,
                "scenario": scenario.name,
                "params": dict(params),
                "servers": [{"address": s.address, "pid": s.pid} for s in servers],
                "cpu": cores.client,
            }
            figures = await run_client(arm, folder, "client.py", job)
        for running in servers:
            used = await running.stop()
            if "peak_rss_kib" in used:
                figures["server_peak_rss_mib"] = used["peak_rss_kib"] / 1024
            if "server_had_to_be_killed" in used:
                figures["server_had_to_be_killed"] = 1.0
    return figures


async def _first_responses(
    arm: Arm, servers: list[ServerProcess], cores: Cores, processes: int, folder: Path
) -> dict[str, float]:
    """Start a number of clients one after the other; return the median of each figure."""
    job = {
        "module": arm.module,
        "address": servers[0].address if servers else "",
        "cpu": cores.client,
    }
    answers = [
        await run_client(arm, folder, "first_response.py", {**job, "spawned_ns": monotonic_ns()})
        for _ in range(processes)
    ]
    return {key: median(answer[key] for answer in answers) for key in answers[0]}
