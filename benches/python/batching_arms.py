"""The arms of `batching.py`: what collects items to batches, and the few verbs that loads use it by.

An arm is a module with `open(function, settings)`, an async context manager. It is imported only in the
process that runs it, because what it is about may be installed in another environment.
"""

import importlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from arms import Arm

BATCH_SIZE = 32


@dataclass(frozen=True)
class Function:
    """What runs a batch: a coroutine function on the loop, or a plain one, which arms run on a thread.

    `name` stands for it where it cannot be handed over, in another process.
    """

    name: str
    call: Callable[[list[Any]], Any]
    is_async: bool


@dataclass(frozen=True)
class Settings:
    """What a load asks of a batcher: a window, a bound on an item's time, in seconds, and room for items."""

    window_s: float = 0.0
    timeout_s: float | None = None
    capacity: int = 1024
    other_cpu: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


class Batching(Protocol):
    """How a load reaches the function."""

    def submit(self, item: Any) -> Awaitable[Any]:
        """Await an item's answer."""
        ...

    def map(self, items: Sequence[Any]) -> Awaitable[list[Any]]:
        """Await the answers of many items."""
        ...


class BatchingModule(Protocol):
    """What an arm's module offers. `LATE` has what an item raises that missed its time, or had no room."""

    LATE: tuple[type[Exception], ...]

    def open(self, function: Function, settings: Settings) -> AbstractAsyncContextManager[Batching]:
        """Collect batches for the function while entered."""
        ...


@dataclass(frozen=True)
class BatchingArm(Arm):
    """One way to collect batches. `options` go to its module; `repeats_max` keeps a slow arm's share of a
    run's time small.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    repeats_max: int = 1_000

    def load_batching(self) -> BatchingModule:
        """Import the arm."""
        return cast(BatchingModule, importlib.import_module(self.module))


# They are far off, and slow.
_PEER_REPEATS_MAX = 2

_ALL = (
    BatchingArm("headrace", "batching_headrace", requires="headrace"),
    # Without the look ahead, and with a queue that is never full: first in, first out, until time is up.
    BatchingArm(
        "headrace-fifo", "batching_headrace", requires="headrace", options={"predictive_expiry": False}
    ),
    BatchingArm("eager", "batching_eager"),
    BatchingArm(
        "batched", "batching_batched", environment="batched", share=0.1, repeats_max=_PEER_REPEATS_MAX
    ),
    BatchingArm(
        "async-batcher",
        "batching_async_batcher",
        environment="async-batcher",
        share=0.05,
        repeats_max=_PEER_REPEATS_MAX,
    ),
    BatchingArm("mosec", "batching_mosec", environment="mosec", share=0.02, repeats_max=_PEER_REPEATS_MAX),
    # The function alone: nothing is collected.
    BatchingArm("bare", ""),
)

BATCHING_ARMS = {arm.name: arm for arm in _ALL}
