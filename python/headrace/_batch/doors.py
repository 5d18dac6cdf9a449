"""How submits reach the queue. From outside the function they are the queue's own methods, put into the
batcher's namespace so that a submit costs no frame of Python; while the function's own code runs, they first
look whether anybody is free.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

from headrace._headrace import BatchQueue


class Doors:
    """A batcher's submits, with the function's own guarded. A call says whether its code runs now.

    Args:
        namespace: the batcher's.
        name: the batcher's.
        workers: how many batches run at once.
        streams: whether it is for ``stream``.
    """

    def __init__(self, namespace: dict[str, Any], name: str, workers: int, *, streams: bool) -> None:
        self._namespace = namespace
        self._name = name
        self._workers = workers
        self._streams = streams
        self._outside: dict[str, Any] = {}
        self._inside: dict[str, Any] = {}

    def open(self, queue: BatchQueue) -> None:
        """Put the queue's methods in the place of the batcher's."""
        if self._streams:
            self._outside = {"stream": queue.stream}
        else:
            self._outside = {"submit": queue.submit, "submit_nowait": queue.submit, "map": queue.map}
        self._inside = {name: self._guarded(queue, method) for name, method in self._outside.items()}
        self._namespace.update(self._outside)

    def shut(self) -> None:
        """The batcher did not start: its own methods say so."""
        for name in self._outside:
            self._namespace.pop(name, None)
        self._outside = self._inside = {}

    def __call__(self, inside: bool) -> None:
        self._namespace.update(self._inside if inside else self._outside)

    def _guarded(self, queue: BatchQueue, method: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **terms: Any) -> Any:
            # One worker is busy: it is the one that asks.
            if self._workers == 1 or queue.stats()["in_flight"] >= self._workers:
                raise RuntimeError(
                    f"a function of the batcher {self._name!r} submits to it while no other of its "
                    f"workers={self._workers} is free: nobody could run the item while the function waits. "
                    "Raise workers=, call the function directly, or submit from a task of its own"
                )
            return method(*arguments, **terms)

        return guarded


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A callback that does not keep its object alive."""
    reference = weakref.WeakMethod(cast("MethodType", method))

    def call(*arguments: Any) -> Any:
        alive = reference()
        return None if alive is None else alive(*arguments)

    return call
