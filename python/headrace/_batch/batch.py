"""The batch that a function is given, and how what it answers is told to those who wait.

One slot, one item: whatever a function answers for slot ``i`` is for item ``i`` of the list.
"""

from __future__ import annotations

import enum
import inspect
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

from headrace import errors
from headrace._headrace import BatchTaken

T = TypeVar("T")

Ticket: TypeAlias = int
"""Names a request to a step engine: unique in its batcher."""


class Marker(enum.Enum):
    """What a streaming function or a step engine says of a slot instead of an item."""

    DONE = "DONE"
    SKIP = "SKIP"

    def __repr__(self) -> str:
        return f"headrace.{self.value}"


DONE: Final[Literal[Marker.DONE]] = Marker.DONE
"""The slot's stream ends here, cleanly."""

SKIP: Final[Literal[Marker.SKIP]] = Marker.SKIP
"""The slot has no item this time."""


class Batch(list[T]):
    """The items of a batch: a list, and what is known of them. The function answers in its order.

    Use it while the function runs, on the thread or loop where it runs.
    """

    __slots__ = ("_stream", "_taken")

    def __init__(self, taken: BatchTaken, stream: Any = None) -> None:
        # Shorter than by `super`, for each batch.
        self.extend(taken.items)
        self._taken = taken
        self._stream = stream

    @property
    def stream(self) -> Any:
        """The :class:`headrace.cuda.Stream` that the batch alone has until it is answered; ``None`` without
        ``streams=``. Answers are told when the stream has come to the end of what was put into it.
        """
        return self._stream

    @property
    def key(self) -> Hashable:
        """The key that the items share; ``None`` without one."""
        return self._taken.key

    @property
    def worker(self) -> int:
        """The number of the worker that runs it, from 0 on."""
        return self._taken.worker

    @property
    def reason(self) -> str:
        """Why it was closed when it was: ``"size"``, ``"cost"``, ``"latency"``, ``"linger"``, ``"idle"`` (a
        worker was free, and there was nothing to wait for), ``"flush"``, ``"drain"`` or ``"isolation"`` (part
        of a batch that has failed).
        """
        return self._taken.reason

    @property
    def cost(self) -> int:
        """What it costs, in whatever ``cost=`` counts; padded with ``padded_cost=True``."""
        return self._taken.cost

    @property
    def padded_size(self) -> int:
        """The smallest of ``allowed_sizes`` that holds it; its own size without them."""
        return self._taken.padded_size

    @property
    def tickets(self) -> list[Ticket]:
        """The items' tickets, in their order: unique in the batcher, for logs and traces."""
        return self._taken.tickets

    @property
    def deadline(self) -> float | None:
        """When the first of those who still wait stops waiting, in :func:`time.monotonic` seconds; ``None``
        when nobody has a deadline, or nobody waits.
        """
        least = self.remaining()
        return None if least is None else time.monotonic() + least

    def remaining(self, index: int | None = None) -> float | None:
        """Seconds for which somebody will wait for an item.

        Args:
            index: the item; ``None`` for the least of all items that somebody waits for.

        Returns:
            ``None`` without a bound; 0 when nobody waits for that item any more.
        """
        taken = self._taken
        if index is not None:
            return taken.remaining(index)
        every = (taken.remaining(slot) for slot in range(len(taken)))
        return min((left for left in every if left), default=None)

    def cancelled(self, index: int) -> bool:
        """Whether nobody waits for this item any more: it was cancelled, timed out, or has been answered."""
        return self._taken.cancelled(index)

    def pad(self, fill: Any) -> list[Any]:
        """The items with `fill` behind them, up to :attr:`padded_size`; a new list.

        The function still answers the items alone: ``model(batch.pad(zero))[: len(batch)]``.
        """
        return [*self, *[fill] * (self._taken.padded_size - len(self))]

    def set_result(self, index: int, result: Any) -> bool:
        """Answer one item ahead of the others: its caller goes on at once. What the function returns in its
        slot is then ignored.

        Args:
            index: the item.
            result: its result, or an exception, which fails it alone.

        Returns:
            Whether somebody was waiting for it.
        """
        return self._taken.resolve(index, result)

    def __reduce__(self) -> Any:
        # A copy in another process is a list: what is known of the items stays with those who wait.
        return list, (list(self),)


_SEQUENCES = frozenset({list, tuple, Batch})
"""What functions return nearly always; the batch itself, if it was changed in place."""


def results_of(answer: Any) -> Sequence[Any]:
    """What a function returned, as results of its items.

    Raises:
        TypeError: it is no sequence of them.
    """
    if type(answer) in _SEQUENCES:
        return cast("Sequence[Any]", answer)
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError("the function returned a coroutine: declare it with async def")
    if isinstance(answer, str | bytes | bytearray | memoryview | Mapping | set | frozenset):
        kind = type(cast("object", answer)).__name__
        raise TypeError(f"the function returned a {kind}, not a sequence of results, one for each item")
    if not (hasattr(answer, "__len__") and hasattr(answer, "__iter__")):
        raise TypeError(
            f"the function returned {type(answer).__name__}, not a sequence of results, one for each item"
        )
    return list(answer)


class Streams:
    """The streams of a batch in the hands of a streaming function."""

    def __init__(self, taken: BatchTaken) -> None:
        self._taken = taken
        self._size = len(taken)
        self._open = set(range(self._size))

    def give(self, step: Any) -> bool:
        """Tell the readers what the function has yielded. Whether anybody still reads.

        Raises:
            TypeError: it is neither a dictionary of slots nor a sequence with one entry for each.
            IndexError: it names a slot that the batch does not have.
            WrongResultCount: the sequence has another length.
        """
        if isinstance(step, Mapping):
            for slot, item in cast("Mapping[Any, Any]", step).items():
                if not isinstance(slot, int) or not 0 <= slot < self._size:
                    raise IndexError(f"the function yielded for slot {slot!r} of a batch of {self._size}")
                self._give(slot, item)
        elif isinstance(step, str | bytes) or not hasattr(step, "__len__"):
            raise TypeError(
                f"the function yielded {type(step).__name__}; yield a dictionary of slots and items, or a "
                "list with one entry for each slot (headrace.SKIP for none, headrace.DONE for its end)"
            )
        else:
            if len(step) != self._size:
                raise errors.WrongResultCount(
                    f"the function yielded {len(step)} entries for a batch of {self._size}; headrace.SKIP is "
                    "for slots that have no item this time",
                    expected=self._size,
                    actual=len(step),
                )
            for slot, item in enumerate(step):
                self._give(slot, item)
        return bool(self._open)

    def _give(self, slot: int, item: Any) -> None:
        if item is SKIP or slot not in self._open:
            return
        if item is DONE:
            self._taken.resolve(slot, None)
            self._open.discard(slot)
        elif isinstance(item, Exception):
            self._taken.resolve(slot, item)
            self._open.discard(slot)
        elif not self._taken.push(slot, item):
            self._open.discard(slot)
