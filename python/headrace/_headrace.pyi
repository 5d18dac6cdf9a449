from asyncio import AbstractEventLoop, Future, Task
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Hashable, Iterable
from types import GenericAlias
from typing import Any, Generic, Literal, Self, TypeVar, final, overload

_T = TypeVar("_T")

__version__: str

def _audit() -> dict[str, int] | None: ...
def _claimed_bytes() -> int: ...
def _forked() -> None: ...
def _exit() -> None: ...
def bind(settings: WorkerSettings, engines: list[tuple[str, EngineSlot]], hub: LoopHub) -> Future[Worker]: ...

@final
class LoopHub:
    @staticmethod
    def start(event_loop: AbstractEventLoop) -> LoopHub: ...
    def drain(self) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...

@final
class Waiter:
    @property
    def _asyncio_future_blocking(self) -> bool: ...
    @_asyncio_future_blocking.setter
    def _asyncio_future_blocking(self, blocking: bool) -> None: ...
    def get_loop(self) -> AbstractEventLoop: ...
    def add_done_callback(self, callback: Callable[[Any], object], *, context: Any = None) -> None: ...
    def remove_done_callback(self, callback: Callable[[Any], object]) -> int: ...
    def cancel(self, msg: Any = None) -> bool: ...
    def cancelled(self) -> bool: ...
    def done(self) -> bool: ...
    def result(self) -> None: ...
    def exception(self) -> None: ...
    def __await__(self) -> Self: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...

@final
class Codec:
    def __new__(
        cls,
        encode: Callable[[Any], bytes],
        encode_or_explain: Callable[[Any], bytes],
        encode_array: Callable[[object], bytes | None],
        decode: Callable[[Any], Any],
        decode_array: Callable[[Any], Any],
        views: bool,
    ) -> Self: ...

@final
class ResponseStream(Generic[_T]):
    """A stream of the items that an engine yields. Made by ``Router.generate``.

    Iterate it with ``async for``. Its end is clean only if the engine ended cleanly and every item arrived;
    anything else raises. Dropping it, breaking out of a loop over a stream that nothing else holds, and
    leaving ``async with`` cancel the engine.
    """

    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[_T]: ...
    def __await__(self) -> Generator[Any, None, _T]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any: ...
    def close(self) -> None: ...
    def chunks(self) -> AsyncIterator[list[_T]]:
        """Lists of the items that are ready: one list for each wake-up instead of one item."""

    def collect(self) -> Coroutine[Any, Any, list[_T]]:
        """All items of the stream, as a list."""

    def stop(self) -> None:
        """Ask the engine to finish; what it still yields arrives, then the stream ends cleanly."""

    def kill(self) -> None:
        """End the stream at once. The engine is cancelled, unread items are dropped."""

    def aclose(self) -> Awaitable[None]:
        """As :meth:`kill`, for ``contextlib.aclosing``; immediate, also when not awaited."""

    def __aenter__(self) -> Awaitable[Self]: ...
    def __aexit__(self, *_exception: Any) -> Awaitable[None]: ...
    def _take_ready(self, into: list[_T], limit: int = 4096) -> None: ...
    @property
    def request_id(self) -> str:
        """The call's request id."""

    @property
    def instance_id(self) -> str | None:
        """The instance that answers; ``None`` before it is known."""

    @property
    def stopped(self) -> bool:
        """Whether the engine ended because it was asked to stop."""

    @property
    def resumed(self) -> int:
        """How often the stream was continued on another instance."""

@final
class RequestStream(Generic[_T]):
    """The items of a request that is a stream, as its engine reads them: ``ctx.requests``.

    Iterate it with ``async for``. It ends only when the caller's iterator has ended and every item arrived.
    A wait that is cancelled or times out loses no item: the stream can be read on. When nobody wants the
    answer any more, the engine is cancelled; a task that reads on all the same gets
    ``headrace.errors.StreamKilled``.
    """

    def __class_getitem__(cls, key: Any) -> GenericAlias: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[_T]: ...
    def __await__(self) -> Generator[Any, None, _T]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any: ...
    def close(self) -> None: ...
    def chunks(self) -> AsyncIterator[list[_T]]:
        """Lists of the items that are ready: one list for each wake-up instead of one item."""

    def collect(self) -> Coroutine[Any, Any, list[_T]]:
        """All items of the stream, as a list."""

    def aclose(self) -> Awaitable[None]:
        """Want no more items: the caller's iterator is closed, unread items are dropped, the response goes
        on. Immediate, also when not awaited.
        """

    def _take_ready(self, into: list[_T], limit: int = 4096) -> None: ...

@final
class Call(Generic[_T]):
    """A call that has not begun until it is awaited, iterated or entered."""

    def __await__(self) -> Generator[Any, None, Any]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any: ...
    def close(self) -> None: ...
    def __aiter__(self) -> ResponseStream[_T]: ...
    def __aenter__(self) -> Awaitable[ResponseStream[_T]]: ...
    def __aexit__(self, *_exception: Any) -> Awaitable[None]: ...

@final
class UnaryCall(Generic[_T]):
    """A call of a unary engine that has not begun until it is awaited."""

    def __await__(self) -> Generator[Any, None, _T]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any: ...
    def close(self) -> None: ...

@final
class RouterSettings:
    def __new__(
        cls,
        targets: list[str] | None,
        *,
        namespace: str,
        policy: str | Callable[[list[dict[str, Any]]], int],
        timeout: float | None,
        item_timeout: float | None,
        instance_timeout: float,
        retries: int,
        max_resume_bytes: int,
        stream_window: int,
        link_window: int,
        ping_interval: float,
        ping_timeout: float,
        slow_consumer_timeout: float | None,
        max_message_bytes: int,
        token: str | None,
        insecure: bool,
    ) -> Self: ...

@final
class Router:
    def __new__(cls, settings: RouterSettings, hub: LoopHub) -> Self: ...
    @overload
    def call(
        self,
        request: Any,
        codec: Codec,
        endpoint: str | None,
        timeout: float | None,
        item_timeout: float | None,
        metadata: list[tuple[str, str]] | None,
        instance: str | None,
        affinity: str | None,
        idempotent: bool,
        resume: Callable[[Any, list[Any]], Any] | None,
        request_id: str | None,
        traceparent: str | None,
        single: Literal[False],
    ) -> Call[Any]: ...
    @overload
    def call(
        self,
        request: Any,
        codec: Codec,
        endpoint: str | None,
        timeout: float | None,
        item_timeout: float | None,
        metadata: list[tuple[str, str]] | None,
        instance: str | None,
        affinity: str | None,
        idempotent: bool,
        resume: Callable[[Any, list[Any]], Any] | None,
        request_id: str | None,
        traceparent: str | None,
        single: Literal[True],
    ) -> UnaryCall[Any]: ...
    def instances(self) -> list[dict[str, Any]]: ...
    def wait_for_instances(self, count: int, timeout: float) -> Future[bool]: ...
    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...

@final
class EngineSlot:
    def __new__(
        cls,
        start: Callable[[Any, Sink], None],
        codec: Codec,
        refuses_single: str | None,
        refuses_stream: str | None,
        iterator_first: bool,
        health_check: tuple[int, bytes] | None,
    ) -> Self: ...

@final
class WorkerSettings:
    def __new__(
        cls,
        address: str,
        *,
        namespace: str,
        concurrency: int,
        queue: int,
        drain_timeout: float,
        ping_interval: float,
        ping_timeout: float,
        health_interval: float,
        health_timeout: float,
        max_message_bytes: int,
        streams_per_link: int,
        stream_window: int,
        discovery: str | bool | None,
        token: str | None,
        insecure: bool,
    ) -> Self: ...

@final
class Worker:
    @property
    def unlisted(self) -> str | None: ...
    @property
    def ready(self) -> bool: ...
    @property
    def unready_reason(self) -> str | None: ...
    def declare_unready(self, reason: str | None) -> None: ...
    @property
    def address(self) -> str: ...
    @property
    def instance_id(self) -> str: ...
    @property
    def endpoints(self) -> list[str]: ...
    def stats(self) -> dict[str, int]: ...
    def drain(self, timeout: float | None = None) -> Future[None]: ...
    def close(self) -> None: ...
    def wait_closed(self) -> Future[None]: ...

@final
class Sink:
    def push(self, object: Any) -> Awaitable[None] | None: ...
    def pump(self, stream: Any) -> Pump | None: ...
    def push_blocking(self, encoding: int, payload: bytes) -> bool: ...
    def finish(self) -> None: ...
    def finish_with(self, object: Any) -> None: ...
    def open(self) -> None: ...
    def fail(self, code: str, kind: str, message: str, traceback: str = "") -> None: ...
    def bind(self, task: Task[None]) -> None: ...
    def _task_done(self, _task: Task[None]) -> None: ...
    def context(self) -> Context: ...
    @property
    def is_killed(self) -> bool: ...
    @property
    def is_stopped(self) -> bool: ...

@final
class RequestSink:
    def bind(self, task: Task[None]) -> None: ...
    def begin(self) -> Awaitable[None] | None: ...
    def push(self, object: Any) -> Awaitable[None] | None: ...
    def pump(self, requests: Any) -> Pump | None: ...
    def finish(self) -> None: ...
    def fail(self, error: BaseException) -> bool: ...
    def _task_done(self, _task: Task[None]) -> None: ...
    @property
    def is_closed(self) -> bool: ...

@final
class Pump:
    def __await__(self) -> Generator[Any]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def throw(self, *exception: Any) -> Any: ...
    def close(self) -> None: ...

@final
class Context:
    """What an engine is given beside the request."""

    @property
    def id(self) -> str:
        """The caller's request id."""

    @property
    def endpoint(self) -> str:
        """The endpoint that the request came for."""

    @property
    def instance_id(self) -> str:
        """The worker's identity."""

    @property
    def client_id(self) -> str:
        """The calling router's identity."""

    @property
    def traceparent(self) -> str | None:
        """W3C trace context, or ``None``."""

    @property
    def metadata(self) -> dict[str, str]:
        """The caller's metadata."""

    @property
    def has_requests(self) -> bool:
        """Whether the request is a stream of items, to be read from :attr:`requests`."""

    @property
    def requests(self) -> RequestStream[Any]:
        """The items of the request, when it is a stream of them: the caller has passed an asynchronous
        iterator. The engine's request is ``None`` then, unless its first parameter is annotated as an
        ``AsyncIterator``; that is this stream.

        Raises:
            TypeError: the request is a single one; :attr:`has_requests` tells.
        """

    @property
    def is_stopped(self) -> bool:
        """Whether the caller, or the engine itself, asked to finish."""

    @property
    def is_killed(self) -> bool:
        """Whether nobody wants the answer any more."""

    def remaining(self) -> float | None:
        """Seconds until the caller's deadline; ``None`` without one."""

    def stop_generating(self) -> None:
        """The engine asks itself to finish: the stream ends as stopped."""

    def stopped(self) -> Awaitable[None]:
        """Done when the stream is stopped or killed."""

@final
class BatchSettings:
    def __new__(
        cls,
        *,
        max_batch_size: int,
        max_latency: float,
        linger: float,
        max_cost: int | None,
        padded_cost: bool,
        allowed_sizes: list[int],
        workers: int,
        queue_capacity: int | None,
        queue_cost: int | None,
        max_in_flight_per_client: int | None,
        timeout: float | None,
        response_timeout: float | None,
        predictive_expiry: bool,
        priorities: int,
        aging: float | None,
        isolate_failures: bool,
        startup_timeout: float,
        callback_timeout: float | None,
        name: str,
    ) -> Self: ...

@final
class BatchQueue:
    @staticmethod
    def start(
        hub: LoopHub,
        settings: BatchSettings,
        key: Callable[[Any], Hashable] | None,
        cost: Callable[[Any], int] | None,
        on_batch: Callable[[BatchTaken], object] | None,
        on_lost: Callable[[int], object] | None,
    ) -> BatchQueue: ...
    def submit(
        self,
        item: Any,
        *,
        client: Hashable = None,
        key: Hashable = None,
        cost: int | None = None,
        priority: int = 0,
        timeout: float | None = ...,
        deadline: float | None = None,
        response_timeout: float | None = ...,
    ) -> Submission: ...
    def serve(
        self,
        request: Any,
        sink: Sink,
        failed: Callable[[Sink, BaseException], None],
        *,
        client: Hashable = None,
        key: Hashable = None,
        cost: int | None = None,
        priority: int = 0,
        timeout: float | None = ...,
        deadline: float | None = None,
        response_timeout: float | None = ...,
    ) -> None: ...
    def submit_sync(
        self,
        item: Any,
        *,
        client: Hashable = None,
        key: Hashable = None,
        cost: int | None = None,
        priority: int = 0,
        timeout: float | None = ...,
        deadline: float | None = None,
        response_timeout: float | None = ...,
    ) -> Any: ...
    def map(
        self,
        items: Iterable[Any],
        *,
        return_exceptions: bool = False,
        client: Hashable = None,
        key: Hashable = None,
        cost: int | None = None,
        priority: int = 0,
        timeout: float | None = ...,
        deadline: float | None = None,
        response_timeout: float | None = ...,
    ) -> Gathered: ...
    def stream(
        self,
        item: Any,
        *,
        client: Hashable = None,
        key: Hashable = None,
        cost: int | None = None,
        priority: int = 0,
        timeout: float | None = ...,
        deadline: float | None = None,
        response_timeout: float | None = ...,
    ) -> BatchStream: ...
    def enter(self, task: Task[Any] | None = None) -> Within: ...
    def seat(self) -> Seat: ...
    def next_batch(self, worker: int) -> BatchTaken | None: ...
    def try_take(self, worker: int, limit: int) -> BatchTaken | None: ...
    def wait_takable(self) -> bool: ...
    def takable(self) -> Flag: ...
    def configure(self, settings: BatchSettings) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def flush(self) -> None: ...
    def begin_drain(self) -> None: ...
    def close(self) -> None: ...
    def lose(self, worker: int) -> None: ...
    def wait_quiet(self) -> Flag: ...
    @property
    def closed(self) -> bool: ...
    def stats(self) -> dict[str, Any]: ...

@final
class Submission:
    """An item's answer. Await it."""

    def __await__(self) -> Generator[Any, None, Any]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any: ...
    def close(self) -> None: ...
    def cancel(self) -> bool:
        """Cancels the item: it leaves the queue, or its answer is ignored. False if it had been answered."""

    def add_done_callback(self, _callback: Callable[[Any], object]) -> None: ...
    def done(self) -> bool:
        """Whether it has been answered, or otherwise ended."""

@final
class Gathered:
    """The answers of many items. Await it."""

    def __await__(self) -> Generator[Any, None, list[Any]]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any: ...
    def close(self) -> None: ...
    def cancel(self) -> None:
        """Cancels the items that have not been answered."""

    def done(self) -> bool:
        """Whether all have been answered, or otherwise ended."""

@final
class BatchStream:
    """What is yielded for one item. Iterate it with ``async for``."""

    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[Any]: ...
    def __await__(self) -> Generator[Any, None, Any]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any: ...
    def close(self) -> None: ...
    def aclose(self) -> Awaitable[None]:
        """Reads no more: the item is cancelled, what was not read is dropped."""

    def __aenter__(self) -> Awaitable[Self]: ...
    def __aexit__(self, *_exception: Any) -> Awaitable[None]: ...

@final
class Seat:
    def give(self, batch: BatchTaken) -> bool: ...
    def close(self) -> None: ...
    def __await__(self) -> Generator[Any, None, BatchTaken | None]: ...
    def __iter__(self) -> Generator[Any, None, BatchTaken | None]: ...
    def __next__(self) -> Any: ...

@final
class Within:
    def enter(self) -> None: ...
    def leave(self) -> None: ...

@final
class BatchTaken:
    @property
    def items(self) -> list[Any]: ...
    @property
    def tickets(self) -> list[int]: ...
    @property
    def key(self) -> Any: ...
    @property
    def worker(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def padded_size(self) -> int: ...
    @property
    def cost(self) -> int: ...
    @property
    def isolates(self) -> bool: ...
    def __len__(self) -> int: ...
    def remaining(self, index: int) -> float | None: ...
    def cancelled(self, index: int) -> bool: ...
    def resolve(self, index: int, value: Any) -> bool: ...
    def push(self, index: int, value: Any) -> bool: ...
    def complete(self, results: Any) -> tuple[int, int, bool]: ...
    def fail(self, error: BaseException) -> None: ...
    def finish(self) -> None: ...
    def split(self) -> tuple[BatchTaken, BatchTaken] | None: ...
    def rearm(self) -> None: ...

@final
class Flag:
    def __await__(self) -> Generator[Any, None, bool]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
