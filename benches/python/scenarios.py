"""The scenarios: what each loads, how much, on which cores, by which arms, and its aims."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench import Bench, Figures
from load_faults import cancel, kill
from load_idle import idle
from load_streams import many_streams, one_stream, paced_streams
from load_unary import large_echo, many_in_flight, one_in_flight


@dataclass(frozen=True)
class Aim:
    """What Headrace's median has to reach: a multiple of another arm's, or a plain value.

    `of` names that arm. `less` names a figure of the in-process arm that is taken off first, of
    Headrace's and of the other arm's.
    """

    value: float
    at_least: bool = False
    of: str | None = None
    less: str | None = None


@dataclass(frozen=True)
class Metric:
    """One figure that a report shows, and the aim it is held to.

    `only` names the one arm that gives it, where there is only one.
    """

    key: str
    unit: str
    aim: Aim | None = None
    only: str | None = None


@dataclass(frozen=True)
class Scenario:
    """One group of rows of the report. Without a `load`, it is `first_response.py` that runs.

    `repeated` names the parameter that says how often a load does the same again.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    params: Mapping[str, Any]
    quick: Mapping[str, Any]
    load: Callable[[Bench], Awaitable[Figures]] | None = None
    one_core: bool = False
    servers: int = 1
    repeated: str | None = None

    def answers_to(self, name: str) -> bool:
        """Say whether `name` selects this scenario, by itself or with its variants."""
        return name in (self.name, self.name.partition("-")[0])

    def params_for(self, share: float, quick: bool) -> dict[str, Any]:
        """Return the load of an arm that does this share of the repetition, and at least three."""
        params = dict(self.quick if quick else self.params)
        if self.repeated is not None:
            params[self.repeated] = min(params[self.repeated], max(3, round(params[self.repeated] * share)))
        return params


def _times_floor(value: float) -> Aim:
    """Aim for at most so many times the floor."""
    return Aim(value, of="floor")


def _rate_of_floor(value: float) -> Aim:
    """Aim for at least so many times the floor."""
    return Aim(value, at_least=True, of="floor")


_CALLS = {"warm_up": 1_000, "calls": 20_000}
_CALLS_QUICK = {"warm_up": 200, "calls": 3_000}
_PACED = {"streams": 256, "window_s": 3.0}
_PACED_QUICK = {"streams": 256, "window_s": 1.0}

_ALL = (
    Scenario(
        "S1",
        "unary 64 B, one in flight, a core each",
        (Metric("p50_us", "us", _times_floor(1.2)), Metric("p99_us", "us")),
        _CALLS,
        _CALLS_QUICK,
        one_in_flight,
        repeated="calls",
    ),
    Scenario(
        "S1-shared",
        "unary 64 B, one in flight, one core for both",
        (Metric("p50_us", "us"), Metric("p99_us", "us")),
        _CALLS,
        _CALLS_QUICK,
        one_in_flight,
        one_core=True,
        repeated="calls",
    ),
    Scenario(
        "S2",
        "unary 64 B, 64 in flight",
        (Metric("requests_per_s", "req/s", _rate_of_floor(1.1)),),
        {"in_flight": 64, "warm_up": 50, "calls_each": 2_000},
        {"in_flight": 64, "warm_up": 20, "calls_each": 300},
        many_in_flight,
        repeated="calls_each",
    ),
    Scenario(
        "S3",
        "one stream of 20,000 token dicts",
        (Metric("items_per_s", "items/s", _rate_of_floor(1.3)),),
        {"kind": "dict", "items": 20_000, "streams": 40},
        {"kind": "dict", "items": 20_000, "streams": 8},
        one_stream,
        repeated="streams",
    ),
    Scenario(
        "S3-bytes",
        "one stream of 20,000 times 64 bytes",
        (Metric("items_per_s", "items/s", _rate_of_floor(1.3)),),
        {"kind": "bytes", "items": 20_000, "streams": 40},
        {"kind": "bytes", "items": 20_000, "streams": 8},
        one_stream,
        repeated="streams",
    ),
    Scenario(
        "S4",
        "64 streams of 500 token dicts at once",
        (
            Metric("items_per_s", "items/s", _rate_of_floor(1.3)),
            Metric("first_p50_ms", "ms"),
            Metric("first_p99_ms", "ms", _times_floor(1.0)),
        ),
        {"streams": 64, "items": 500, "rounds": 25},
        {"streams": 64, "items": 500, "rounds": 6},
        many_streams,
        repeated="rounds",
    ),
    Scenario(
        "S5",
        "256 streams, 20 ms between items, staggered",
        (Metric("cpu_us_per_item", "us CPU/item", Aim(1.0, of="floor", less="cpu_us_per_item")),),
        {**_PACED, "together": False},
        {**_PACED_QUICK, "together": False},
        paced_streams,
    ),
    Scenario(
        "S5b",
        "256 streams, all released each 20 ms",
        (Metric("cpu_us_per_item", "us CPU/item", _times_floor(1.0)),),
        {**_PACED, "together": True},
        {**_PACED_QUICK, "together": True},
        paced_streams,
    ),
    Scenario(
        "S6",
        "unary echo of 1 MiB, one in flight; an echo counts once",
        (Metric("mb_per_s", "MB/s", Aim(1.2, at_least=True, of="zmq-item")),),
        {"warm_up": 20, "calls": 300},
        {"warm_up": 5, "calls": 50},
        large_echo,
        repeated="calls",
    ),
    Scenario(
        "S7",
        "imports, connect and first response in a fresh process",
        (
            Metric("first_ms", "ms", _times_floor(2.0)),
            Metric("from_spawn_ms", "ms"),
            Metric("client_peak_rss_mib", "MiB client", Aim(45)),
            Metric("server_peak_rss_mib", "MiB server", Aim(35)),
        ),
        {"processes": 10},
        {"processes": 3},
    ),
    Scenario(
        "cancel",
        "client's cancel to the engine's CancelledError",
        (Metric("p50_ms", "ms"), Metric("p99_ms", "ms", Aim(50))),
        {"samples": 300},
        {"samples": 60},
        cancel,
    ),
    Scenario(
        "kill",
        "SIGKILL of the worker to the error of its 64 streams",
        (Metric("p50_ms", "ms"), Metric("p99_ms", "ms", Aim(100))),
        {"streams": 64},
        {"streams": 64},
        kill,
        servers=5,
    ),
    Scenario(
        "idle",
        "10,000 open idle streams, memory per stream",
        (
            Metric("engine_kib", "KiB engine", only="inprocess"),
            Metric("client_kib", "KiB client", Aim(8)),
            Metric("server_kib", "KiB server", Aim(8, less="engine_kib")),
        ),
        {"warm_up": 200, "streams": 10_000},
        {"warm_up": 200, "streams": 2_000},
        idle,
    ),
)

SCENARIOS = {scenario.name: scenario for scenario in _ALL}


def select(names: list[str]) -> list[Scenario]:
    """Return the scenarios that the names select, in the report's order."""
    unknown = [name for name in names if not any(s.answers_to(name) for s in _ALL)]
    if unknown:
        raise ValueError(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    return [scenario for scenario in _ALL if any(scenario.answers_to(name) for name in names)]
