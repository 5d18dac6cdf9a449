"""The work-conserving ideal: what no batcher on one worker can beat without knowing the future."""

from collections.abc import Callable, Sequence

from batching_arms import BATCH_SIZE


def waits_s(arrivals_s: Sequence[float], takes_s: Callable[[int], float]) -> list[float]:
    """Return the time from arrival to answer of each item, for arrivals in order.

    Whenever the worker is free and something waits, it takes all of it, up to a full batch, at no cost beyond
    the function's own time.
    """
    waits: list[float] = []
    free_s = 0.0
    while len(waits) < len(arrivals_s):
        first = len(waits)
        start_s = max(free_s, arrivals_s[first])
        end = first
        while end < len(arrivals_s) and end - first < BATCH_SIZE and arrivals_s[end] <= start_s:
            end += 1
        free_s = start_s + takes_s(end - first)
        waits.extend(free_s - arrived_s for arrived_s in arrivals_s[first:end])
    return waits
