"""What a batcher is told, as types: its settings, what a submit says of an item, what a function may be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

from headrace._batch.batch import Batch, Marker, Ticket

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Terms(TypedDict, total=False):
    """What a submit may say of its item.

    Attributes:
        client: whom ``max_in_flight_per_client`` counts it for; anything hashable. Default none: nobody.
        key: only items of one key share a batch; anything hashable. Default what ``key=`` says of it.
        cost: what it costs, a whole number from 0 up. Default what ``cost=`` says of it, or 1.
        priority: 0 is the most urgent, below ``priorities``. Default 0.
        timeout: seconds for the submit as a whole, ``None`` for no bound. Default the batcher's.
        deadline: when the submit shall be over at the latest, in :func:`time.monotonic` seconds.
        response_timeout: seconds for the function, from dispatch on. Default the batcher's.
    """

    client: Hashable
    key: Hashable
    cost: int | None
    priority: int
    timeout: float | None
    deadline: float | None
    response_timeout: float | None


class Changes(TypedDict, total=False):
    """Settings that a batcher can change while it runs; see :class:`Batcher`."""

    max_batch_size: int
    max_latency: float
    linger: float
    max_cost: int | None
    padded_cost: bool
    allowed_sizes: Sequence[int] | None
    queue_capacity: int | None
    queue_cost: int | None
    max_in_flight_per_client: int | None
    timeout: float | None
    response_timeout: float | None
    predictive_expiry: bool
    priorities: int
    aging: float | None
    isolate_failures: bool
    callback_timeout: float | None


class Settings(Changes, total=False):
    """Every setting of a :class:`Batcher`."""

    cost: Callable[[Any], int] | None
    key: Callable[[Any], Hashable] | None
    workers: int | None
    streams: Any
    on_start: Callable[[], object] | None
    on_stop: Callable[[], object] | None
    warmup: Callable[[], object] | None
    startup_timeout: float
    name: str | None


class Results(Protocol[R_co]):
    """A sequence, as far as results are concerned: a list, a tuple, an array."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[R_co]: ...


class Processor(Protocol[T, R_co]):
    """An object that has its function as a method."""

    def process(self, batch: Batch[T], /) -> Results[R_co | Exception]: ...


class AsyncProcessor(Protocol[T, R_co]):
    """The same, on the loop."""

    def process(self, batch: Batch[T], /) -> Awaitable[Results[R_co | Exception]]: ...


class StepEngine(Protocol[T, R_co]):
    """An engine that requests join and leave between steps. Its methods are never called at the same time."""

    def add(self, requests: list[tuple[Ticket, T]], /) -> Any:
        """Take these requests. If it raises, they fail."""
        ...

    def step(self) -> Sequence[tuple[Ticket, R_co | Exception | Literal[Marker.DONE, Marker.SKIP], bool]]:
        """Go on with all requests: a list of ``(ticket, result, done)``. A result is one item of the
        request's stream; ``headrace.SKIP`` is none, and an exception fails that request alone. If it raises,
        all fail.
        """
        ...

    def remove(self, tickets: list[Ticket], /) -> Any:
        """Nobody wants these requests any more, or they have failed; perhaps some have left already."""
        ...

    def capacity(self) -> Any:
        """How many more requests it has room for now. Ignored, and taken for 1, while it has none."""
        ...


class AsyncStepEngine(Protocol[T, R_co]):
    """The same, on the loop: ``step`` is asynchronous, and the other methods may be."""

    def add(self, requests: list[tuple[Ticket, T]], /) -> Any: ...
    def step(
        self,
    ) -> Awaitable[Sequence[tuple[Ticket, R_co | Exception | Literal[Marker.DONE, Marker.SKIP], bool]]]: ...
    def remove(self, tickets: list[Ticket], /) -> Any: ...
    def capacity(self) -> Any: ...


Yielded: TypeAlias = (
    Mapping[int, R | Exception | Literal[Marker.DONE, Marker.SKIP]]
    | Sequence[R | Exception | Literal[Marker.DONE, Marker.SKIP]]
)
"""What a streaming function yields."""

BatchFunction: TypeAlias = (
    Callable[[Batch[T]], Results[R | Exception]]
    | Callable[[Batch[T]], Awaitable[Results[R | Exception]]]
    | Callable[[Batch[T]], Iterator[Yielded[R]]]
    | Callable[[Batch[T]], AsyncIterator[Yielded[R]]]
    | Processor[T, R]
    | AsyncProcessor[T, R]
    | Callable[[], Processor[T, R]]
    | Callable[[], AsyncProcessor[T, R]]
    | StepEngine[T, R]
    | AsyncStepEngine[T, R]
    | Callable[[], StepEngine[T, R]]
    | Callable[[], AsyncStepEngine[T, R]]
)
"""What a batcher runs."""
