"""What a load is given, and the few sums that all loads share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import usage
from arms import Client

Figures = dict[str, float]


@dataclass(frozen=True)
class Server:
    """A serving process that this run started."""

    address: str
    pid: int


@dataclass(frozen=True)
class Bench:
    """One run of one scenario: the clients to load, and how much.

    There is one client for each server, and one with no server for the arm that needs none.
    """

    clients: Sequence[Client]
    servers: Sequence[Server]
    params: Mapping[str, Any]

    @property
    def client(self) -> Client:
        """Return the only client of a scenario that needs one."""
        return self.clients[0]

    async def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds used so far by the client and by the server."""
        server = await self.client.call("usage", b"") if self.servers else {"cpu_s": 0.0}
        return usage.read()["cpu_s"], server["cpu_s"]


def cpu_figures(before: tuple[float, float], after: tuple[float, float]) -> Figures:
    """Return what both sides used between two readings of `Bench.cpu_s`."""
    return {"client_cpu_s": after[0] - before[0], "server_cpu_s": after[1] - before[1]}


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
