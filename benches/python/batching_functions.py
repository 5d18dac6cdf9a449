"""The functions that batches are run with, and how long the slow one really takes."""

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from batching_arms import BATCH_SIZE, Function

# A model on another device: so much for a batch, and so much more for each item. Python is free meanwhile.
BATCH_S, ITEM_S = 2e-3, 10e-6

_PR_SET_TIMERSLACK = 29
_SIZES = (1, 8, 16, 24, 32)
_precise = threading.local()
_Result = TypeVar("_Result")


async def nothing(items: list[Any]) -> list[Any]:
    """Answer items with themselves, at no cost."""
    return items


def model(items: list[Any]) -> list[Any]:
    """Answer items with themselves after their time, on a thread."""
    if not hasattr(_precise, "is_set"):
        # The kernel may be 50 us late with this thread's wakes otherwise, which is no batcher's doing.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        _precise.is_set = True
    time.sleep(BATCH_S + ITEM_S * len(items))
    return items


NOTHING = Function("nothing", nothing, is_async=True)
MODEL = Function("model", model, is_async=False)


@dataclass(frozen=True)
class Pace:
    """How long the model takes here, in seconds, on a thread that does nothing else."""

    batch_s: float
    item_s: float

    def of(self, size: int) -> float:
        """Return the time of a batch."""
        return self.batch_s + self.item_s * size

    @property
    def items_per_s(self) -> float:
        """Return what full batches one after the other come to: all that can be done."""
        return BATCH_SIZE / self.of(BATCH_SIZE)


def measure_pace(calls: int) -> Pace:
    """Run batches of several sizes, in turns, and fit a line to their median times."""
    found_s: dict[int, list[float]] = {size: [] for size in _SIZES}
    for _ in range(calls):
        for size in _SIZES:
            items = list(range(size))
            start = time.perf_counter()
            model(items)
            found_s[size].append(time.perf_counter() - start)
    took_s = {size: median(values) for size, values in found_s.items()}
    middle, middle_s = sum(_SIZES) / len(_SIZES), sum(took_s.values()) / len(_SIZES)
    item_s = sum((size - middle) * (took_s[size] - middle_s) for size in _SIZES) / sum(
        (size - middle) ** 2 for size in _SIZES
    )
    return Pace(middle_s - item_s * middle, item_s)


def on_thread(what: Callable[[], _Result]) -> _Result:
    """Return what a function returns on a thread of its own, which is waited for."""
    results: list[_Result] = []
    thread = threading.Thread(target=lambda: results.append(what()))
    thread.start()
    thread.join()
    return results[0]
