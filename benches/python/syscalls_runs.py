"""Counts per item: what is loaded, and what is taken off for the start and the end of a process.

Counts are of whole processes, from their first instruction to their last: once connected and
without a load, once under load. The difference is owed to the items, their warm-up included.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import Arm
from processes import RunFailed
from runs import Cores
from scale_processes import loading, serving
from syscalls_tools import Tool

SIDES = ("client", "server")
Counts = dict[str, Counter[str]]


@dataclass(frozen=True)
class Counted:
    """A scenario that is counted: the parameter that says how much, and the items that this makes."""

    scenario: str
    params: Mapping[str, Any]
    grows: str
    amount: float
    quick: float
    items_of_one: int
    items_of_warm_up: int
    one_core: bool = False

    def amount_for(self, arm: Arm, quick: bool) -> float:
        """Return how much an arm is loaded with."""
        amount = self.quick if quick else self.amount
        return max(1, type(amount)(amount * arm.share))

    def items(self, amount: float) -> int:
        """Return how many items, or calls, a load moves in all."""
        return self.items_of_warm_up + round(amount * self.items_of_one)


_PACED = {"streams": 256}

_ALL = (
    Counted("S1", {"warm_up": 200}, "calls", 5_000, 1_500, 1, 200),
    Counted("S1-shared", {"warm_up": 200}, "calls", 5_000, 1_500, 1, 200, one_core=True),
    Counted("S2", {"in_flight": 64, "warm_up": 10}, "calls_each", 400, 100, 64, 640),
    Counted("S3", {"kind": "dict", "items": 20_000}, "streams", 30, 10, 20_000, 20_000),
    Counted("S4", {"streams": 64, "items": 500}, "rounds", 20, 6, 32_000, 32_000),
    # A second of paced streams is 50 periods of 20 ms; a second and a period lie around the window.
    Counted("S5", {**_PACED, "together": False}, "window_s", 3.0, 1.0, 256 * 50, 256 * 51),
    Counted("S5b", {**_PACED, "together": True}, "window_s", 3.0, 1.0, 256 * 50, 256 * 51),
)
COUNTED = {counted.scenario: counted for counted in _ALL}


async def count_per_item(
    counted: Counted, arm: Arm, tool: Tool, cores: Cores, quick: bool
) -> dict[str, dict[str, float]]:
    """Return what an item costs on each side, by name."""
    amount = counted.amount_for(arm, quick)
    base = await _count(counted, arm, tool, cores, None)
    whole = await _count(counted, arm, tool, cores, amount)
    items = counted.items(amount)
    return {
        side: {name: (whole[side][name] - base[side][name]) / items for name in whole[side] | base[side]}
        for side in SIDES
    }


async def _count(counted: Counted, arm: Arm, tool: Tool, cores: Cores, amount: float | None) -> Counts:
    """Run the load once, or none at all, and return the counts of both processes."""
    with tempfile.TemporaryDirectory(prefix="syscalls-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        paths = {side: folder / f"{side}.counts" for side in SIDES}
        server_cpu = cores.client if counted.one_core else cores.server
        async with serving(arm, folder, server_cpu, wrapper=tool.wrapper(paths["server"])) as server:
            job = {
                "arm": arm.name,
                "scenario": counted.scenario,
                "params": {} if amount is None else {**counted.params, counted.grows: amount},
                "servers": [{"address": server.address, "pid": server.pid}],
                "cpu": cores.client,
            }
            wrapper = tool.wrapper(paths["client"])
            async with loading(arm, folder, "syscalls_client.py", job, wrapper=wrapper) as client:
                client.go()
                switched: Mapping[str, Any] = await client.figures()
            await server.stop()
        if tool.name == "plain":
            return {side: Counter[str](switched[side]) for side in SIDES}
        for path in paths.values():
            if not path.exists():
                raise RunFailed(f"{tool.name} has left no counts")
        return {side: tool.parse(paths[side].read_text()) for side in SIDES}
