"""Step engines: requests join and leave between steps, each with a stream of its own.

One turn is written once, as a generator of what the engine's methods returned, and driven by a thread, which
hands the same back, or by a task, which awaits it first. Nothing but a turn touches the engine.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Generator
from typing import Any, cast

from headrace._batch.batch import DONE, SKIP, Ticket
from headrace._headrace import BatchQueue, BatchTaken

_log = logging.getLogger("headrace.batch")

Turn = Generator[Any, Any, None]
"""Yields what an engine's method returned, and is sent what came of it."""


class _Group:
    """Requests that were taken together: handed back when the last of them has ended."""

    __slots__ = ("left", "taken")

    def __init__(self, taken: BatchTaken) -> None:
        self.taken = taken
        self.left = len(taken)


class Steps:
    """The requests that one worker's engine has, and its turns.

    Args:
        queue: where they come from.
        worker: the worker's number.
        engine: the engine.
        watched: whether a step is bounded by ``callback_timeout``.
    """

    def __init__(self, queue: BatchQueue, worker: int, engine: Any, *, watched: bool) -> None:
        self._queue = queue
        self._worker = worker
        self._engine = engine
        self._watched = watched
        self._open: dict[Ticket, tuple[_Group, int]] = {}
        self.is_dry = False
        """Whether the last look for requests found none: only then is one told of new ones."""

    @property
    def idle(self) -> bool:
        """Whether the engine has no requests."""
        return not self._open

    def turn(self) -> Turn:
        """Let requests leave and join, and do one step. What the engine raises fails the requests that it
        concerns, never the worker.
        """
        try:
            gone = [ticket for ticket, (group, slot) in self._open.items() if group.taken.cancelled(slot)]
            if gone:
                for ticket in gone:
                    self._close(ticket)
                yield self._engine.remove(gone)
            room = _room(cast("object", (yield self._engine.capacity())))
            # An engine with no requests and no room would never have any: nothing would change its mind.
            yield from self._join(max(room, 1) if self.idle else room)
            if self._open:
                if self._watched:
                    self._rearm()
                self._deliver(cast("object", (yield self._engine.step())))
        except Exception as error:
            yield from self.abort(error)

    def abort(self, error: BaseException) -> Turn:
        """Fail every request that the engine has: a step, or what surrounds it, raised, and it is not known
        which request is to blame.
        """
        if self.idle:
            # Somebody is told, so that an engine that always raises does not spin.
            self._take(1)
        tickets = list(self._open)
        self._fail(tickets, error)
        yield from self._forget(tickets)

    def leave(self) -> Turn:
        """Have the engine forget its requests, whose callers have been told."""
        tickets = list(self._open)
        self._open.clear()
        yield from self._forget(tickets)

    def _join(self, room: int) -> Turn:
        while room > 0:
            joining = self._take(room)
            if not joining:
                return
            room -= len(joining)
            try:
                yield self._engine.add(joining)
            except Exception as error:
                tickets = [ticket for ticket, _ in joining]
                self._fail(tickets, error)
                yield from self._forget(tickets)

    def _take(self, room: int) -> list[tuple[Ticket, Any]]:
        taken = self._queue.try_take(self._worker, room)
        self.is_dry = taken is None
        if taken is None:
            return []
        group = _Group(taken)
        for slot, ticket in enumerate(taken.tickets):
            self._open[ticket] = (group, slot)
        return list(zip(taken.tickets, taken.items, strict=True))

    def _rearm(self) -> None:
        for group in {id(group): group for group, _ in self._open.values()}.values():
            group.taken.rearm()

    def _deliver(self, results: object) -> None:
        if not isinstance(results, list | tuple):
            raise TypeError(f"step() returned {type(results).__name__}, not a list of (ticket, result, done)")
        for entry in cast("list[Any]", results):
            try:
                ticket, result, done = entry
            except (TypeError, ValueError):
                raise TypeError(
                    f"step() returned {entry!r} in its list, not (ticket, result, done)"
                ) from None
            request = self._open.get(ticket)
            # A request that has left may still be in the engine's pipeline.
            if request is None:
                continue
            group, slot = request
            if isinstance(result, Exception):
                group.taken.resolve(slot, result)
                self._close(ticket)
                continue
            if result is not SKIP and result is not DONE:
                group.taken.push(slot, result)
            if done or result is DONE:
                group.taken.resolve(slot, None)
                self._close(ticket)

    def _forget(self, tickets: list[Ticket]) -> Turn:
        if not tickets:
            return
        try:
            yield self._engine.remove(tickets)
        except Exception:
            _log.exception("a step engine raised when it was to remove requests that had failed")

    def _fail(self, tickets: list[Ticket], error: BaseException) -> None:
        groups: dict[int, _Group] = {}
        for ticket in tickets:
            request = self._open.pop(ticket, None)
            if request is not None:
                groups[id(request[0])] = request[0]
        for group in groups.values():
            # Requests that were taken together joined together, and fail together.
            group.taken.fail(error)

    def _close(self, ticket: Ticket) -> None:
        group, _ = self._open.pop(ticket)
        group.left -= 1
        if not group.left:
            group.taken.finish()


def _room(capacity: object) -> int:
    if not isinstance(capacity, int) or isinstance(capacity, bool):
        raise TypeError(f"capacity() returned {capacity!r}, not a number of requests")
    return max(capacity, 0)


def drive(turn: Turn) -> None:
    """Drive a turn on a thread."""
    try:
        returned = next(turn)
        while True:
            if inspect.iscoroutine(returned):
                returned.close()
                returned = turn.throw(TypeError("an engine whose step is synchronous has an async method"))
            else:
                returned = turn.send(returned)
    except StopIteration:
        return


async def drive_async(turn: Turn) -> None:
    """Drive a turn on the loop: awaits what can be awaited."""
    try:
        returned = next(turn)
        while True:
            try:
                if inspect.isawaitable(returned):
                    returned = await returned
            except BaseException as error:
                returned = turn.throw(error)
            else:
                returned = turn.send(returned)
    except StopIteration:
        return
