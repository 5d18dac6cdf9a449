"""How submits reach the queue: by its own methods, put into the batcher's namespace, so that a submit costs
no frame of Python.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

from headrace._headrace import BatchQueue


class Doors:
    """A batcher's submits.

    Args:
        namespace: the batcher's.
        streams: whether it is for ``stream``.
    """

    def __init__(self, namespace: dict[str, Any], *, streams: bool) -> None:
        self._namespace = namespace
        self._names = ("stream",) if streams else ("submit", "submit_nowait", "map")

    def open(self, queue: BatchQueue) -> None:
        """Put the queue's methods in the place of the batcher's."""
        for name in self._names:
            self._namespace[name] = getattr(queue, name.removesuffix("_nowait"))

    def shut(self) -> None:
        """The batcher did not start: its own methods say so."""
        for name in self._names:
            self._namespace.pop(name, None)


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A callback that does not keep its object alive."""
    reference = weakref.WeakMethod(cast("MethodType", method))

    def call(*arguments: Any) -> Any:
        alive = reference()
        return None if alive is None else alive(*arguments)

    return call
