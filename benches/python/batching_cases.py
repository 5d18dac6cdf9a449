"""The cases of `batching.py`: what is loaded, by which arms, the figures reported, and their aims."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from batching_idle import idle
from batching_loads import overload, poisson, waiting, window
from batching_place import Place
from batching_rates import map_many, slow, submit
from bench import Figures
from scenarios import Aim, Metric, Scenario


@dataclass(frozen=True)
class Case(Scenario):
    """One block of the report.

    `arms` are all that can do it. The runner looks at an idle process for `watched_s`. Where a figure does
    not vary, `repeats_max` saves time.
    """

    arms: tuple[str, ...] = ()
    run: Callable[[Place], Awaitable[Figures]] = field(kw_only=True)
    watched_s: float | None = None
    repeats_max: int = 1_000


_PEERS = ("headrace", "eager", "batched", "async-batcher")
_SUBMITTERS = 256
_CAPACITY = 200_000

# Long enough for a queue to fill up to the deadline at 1.3 times the capacity: a third of a second.
_SETTLE_S = 0.6


def _load(share: float) -> Case:
    """Return the case of a load that can be done."""
    return Case(
        f"load-{share:g}",
        f"the model at {share:g} of its capacity, Poisson arrivals, beside the work-conserving ideal",
        (
            Metric("of_ideal", "x the ideal's mean time", Aim(1.05)),
            Metric("mean_ms", "ms to an answer, mean"),
            Metric("ideal_ms", "ms, the ideal"),
            Metric("p99_ms", "ms to an answer"),
        ),
        {"load": share, "seconds": 1.5, "pace_calls": 30, "capacity": _CAPACITY},
        {"seconds": 0.6, "pace_calls": 15},
        arms=("headrace", "eager"),
        run=waiting,
    )


def _overload(times: float) -> Case:
    """Return the case of more than can be done."""
    return Case(
        f"overload-{times:g}",
        f"{times:g} times the model's capacity, each item with 100 ms",
        (
            Metric("goodput_of_capacity", "of the capacity, in time", Aim(0.95, at_least=True)),
            Metric("offered_of_capacity", "of the capacity, offered"),
            Metric("answered_p50_ms", "ms to an answer"),
            Metric("answered_p99_ms", "ms to an answer"),
        ),
        {
            "times": times,
            "timeout_s": 0.1,
            "seconds": 1.8,
            "settle_s": _SETTLE_S,
            "pace_calls": 30,
            "capacity": _CAPACITY,
        },
        {"seconds": 1.3, "pace_calls": 15},
        arms=("headrace", "headrace-fifo", "eager"),
        run=overload,
    )


def _window(name: str, where: str, arms: tuple[str, ...], is_async: bool) -> Case:
    """Return the case of a window, for a function on the loop or on a thread."""
    return Case(
        name,
        f"batches that wait for 5 ms, 2,000 arrivals a second, a function on {where}",
        (
            Metric("late_p99_us", "us from the window's end", Aim(200)),
            Metric("late_p50_us", "us from the window's end"),
            Metric("least_us", "us from the window's end", Aim(0, at_least=True)),
        ),
        {"rate": 2_000, "seconds": 1.5, "window_s": 0.005, "is_async": is_async},
        {"seconds": 0.6},
        arms=arms,
        run=window,
    )


def _idle(name: str, where: str, arms: tuple[str, ...], is_async: bool) -> Case:
    """Return the case of a batcher that has been used and is not any more."""
    return Case(
        name,
        f"3 s of nothing, after use, a function on {where}",
        (
            Metric("voluntary", "switches of the process", Aim(0)),
            Metric("involuntary", "switches of the process"),
        ),
        {"items": 1_000, "is_async": is_async},
        {},
        arms=arms,
        run=idle,
        watched_s=3.0,
        repeats_max=2,
    )


_ALL = (
    Case(
        "submit",
        f"{_SUBMITTERS} submitters, batches of at most 32, a function that costs nothing",
        (Metric("items_per_s", "items/s", Aim(1.0, at_least=True, of="eager")),),
        {"submitters": _SUBMITTERS, "warm_up": 40_000, "items": 400_000},
        {"items": 100_000},
        arms=(*_PEERS, "mosec"),
        run=submit,
    ),
    Case(
        "map",
        "the same function over 250,000 items at once",
        (Metric("items_per_s", "items/s", Aim(2e6, at_least=True)),),
        {"warm_up": 100_000, "items": 250_000, "rounds": 5},
        {"rounds": 2},
        arms=_PEERS,
        run=map_many,
    ),
    Case(
        "model",
        f"{_SUBMITTERS} submitters, a function on a thread that takes 2 ms and 10 us for each item",
        (Metric("items_per_s", "items/s", Aim(0.95, at_least=True, of="bare")),),
        {"submitters": _SUBMITTERS, "warm_up": 2_560, "items": 20_480},
        {"items": 5_120},
        arms=("bare", *_PEERS, "mosec"),
        run=slow,
    ),
    Case(
        "poisson",
        "2,000 arrivals a second, a function that costs nothing",
        (
            Metric("added_p50_us", "us to an answer", Aim(1.0, of="eager")),
            Metric("added_p99_us", "us to an answer", Aim(1.0, of="eager")),
        ),
        {"rate": 2_000, "seconds": 2.0},
        {"seconds": 0.6},
        arms=(*_PEERS, "mosec"),
        run=poisson,
    ),
    _window("window", "the loop", ("headrace", "batched", "async-batcher"), is_async=True),
    _window("window-thread", "a thread", ("headrace",), is_async=False),
    _idle("idle", "the loop", ("bare", *_PEERS), is_async=True),
    _idle("idle-thread", "a thread", ("headrace", "eager"), is_async=False),
    _overload(1.3),
    _overload(3),
    _load(0.25),
    _load(0.5),
    _load(0.8),
    _load(0.9),
)

CASES = {case.name: case for case in _ALL}
