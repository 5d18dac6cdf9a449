"""The cases of `failover.py`: what is lost or exceeded, the figures that are reported, and their aims."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from failover_loads import Load, lose, overload
from scenarios import Aim, Metric

# So many streams to each worker: were one of four lost with more of them, the budget for further attempts, a
# fifth of a router's calls and three each second, would not resume them all.
STREAMS_EACH = 64

# The aim for a worker that is killed, whose connection the kernel closes.
KILLED_MS = 100.0

# What a router is told in the cases with a worker that stops answering, instead of 5 s and 5 s.
PING_S = 0.2

# A frozen worker is given up when both have passed, and then it is as with a killed one.
FROZEN_MS = 2 * PING_S * 1e3 + KILLED_MS

# A refusal is a frame each way, and comes at once if the worker's loop is free.
REFUSED_MS = 5.0
GOODPUT_SHARE = 0.9

# Requests that a worker of the overload runs, and lets wait; and callers of the peak for each worker, enough
# that none runs dry and few calls are refused.
CONCURRENCY, QUEUE, CALLERS = 8, 8, 12


@dataclass(frozen=True)
class Case:
    """One group of rows of the report. `bounds` are the settings of each of the `workers`."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    bounds: Mapping[str, int]
    params: Mapping[str, Any]
    load: Load
    workers: int


def _loss(name: str, title: str, signal: str, resume: bool, aim_ms: float) -> Case:
    """Return a case in which one worker is sent a signal under streams to all."""
    frozen = signal == "SIGSTOP"
    settings = {"ping_interval": PING_S, "ping_timeout": PING_S} if frozen else {}
    workers = 4
    return Case(
        name,
        title,
        (Metric("p50_ms", "ms"), Metric("p99_ms", "ms", Aim(aim_ms))),
        {"concurrency": workers * STREAMS_EACH, "queue": 0},
        {
            "streams": workers * STREAMS_EACH,
            "gap_s": 0.02,
            "signal": signal,
            "resume": resume,
            "settings": settings,
        },
        lose,
        workers,
    )


def _overload(name: str, title: str, endpoint: str, work_s: float, workers: int, aim: Aim | None) -> Case:
    """Return a case in which `workers` are asked for three times as much as they can do."""
    return Case(
        name,
        title,
        (
            Metric("refused_p50_ms", "ms to a refusal"),
            Metric("refused_p99_ms", "ms to a refusal", aim),
            Metric("goodput_of_peak", "of the peak done", Aim(GOODPUT_SHARE, at_least=True)),
            Metric("offered_of_peak", "of the peak asked for"),
            Metric("peak_per_s", "calls/s at the peak"),
            Metric("done_p50_ms", "ms to an answer"),
            Metric("done_p99_ms", "ms to an answer"),
            Metric("retries_per_call", "further attempts a call"),
        ),
        {"concurrency": CONCURRENCY, "queue": QUEUE},
        {
            "endpoint": endpoint,
            "work_s": work_s,
            "callers": CALLERS * workers,
            "warm_up_s": 0.5,
            "peak_s": 2.0,
            "overload_s": 5.0,
            "times": 3,
        },
        overload,
        workers,
    )


_ALL = (
    _loss("killed-resumed", "SIGKILL of a worker to the first resumed item", "SIGKILL", True, KILLED_MS),
    _loss("killed-error", "SIGKILL of a worker to the caller's error", "SIGKILL", False, KILLED_MS),
    _loss("frozen-resumed", "SIGSTOP of a worker to the first resumed item", "SIGSTOP", True, FROZEN_MS),
    _loss("frozen-error", "SIGSTOP of a worker to the caller's error", "SIGSTOP", False, FROZEN_MS),
    _overload(
        "overload", "three times the calls that are done at the peak", "work", 0.02, 4, Aim(REFUSED_MS)
    ),
    _overload(
        "overload-busy",
        "the same at one worker, whose engine computes on its loop",
        "compute",
        0.005,
        1,
        None,
    ),
)

CASES = {case.name: case for case in _ALL}
