import contextvars
from asyncio import AbstractEventLoop, Future, Task
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Hashable,
    Iterable,
    Mapping,
)
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
        metrics: str | None,
        token: str | None,
        insecure: bool,
    ) -> Self: ...

@final
class Router:
    def __new__(cls, settings: RouterSettings, hub: LoopHub) -> Self: ...
    @property
    def metrics_address(self) -> str | None: ...
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
        metrics: str | None,
        metrics_labels: Mapping[str, str] | None,
        token: str | None,
        insecure: bool,
    ) -> Self: ...

@final
class Worker:
    @property
    def metrics_address(self) -> str | None: ...
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
class MergedPort:
    def __new__(cls, address: str, insecure: bool, sockets: list[str]) -> Self: ...
    @property
    def address(self) -> str | None: ...
    def close(self) -> None: ...

def render_metrics() -> str: ...
def metric_families() -> list[tuple[str, str, str, list[tuple[str, list[tuple[str, str]], float]]]]: ...

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
    def seat(self, worker: int) -> Seat: ...
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
    """An item's answer. Await it; letting go of it cancels the item."""

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
    """The answers of many items. Await it; letting go of it cancels those that have none."""

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
    def close(self) -> None: ...
    def __await__(self) -> Generator[Any, None, BatchTaken | None]: ...
    def __iter__(self) -> Generator[Any, None, BatchTaken | None]: ...
    def __next__(self) -> Any: ...

@final
class Within:
    def leave(self) -> None: ...
    def leave_clean(self, task: Task[Any], found: contextvars.Context) -> bool: ...

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

def _cuda_unavailable_reason() -> str | None: ...
def _cuda_device_count() -> int: ...
def _cuda_devices() -> list[dict[str, Any]]: ...
def _cuda_planned_budget(streams: int, budget_mb: int | None = None) -> int: ...
def _cuda_external_stream(stream: object, device: int = 0) -> Stream: ...

@final
class StreamPool:
    """Streams of one device, each lent to one user at a time, first come, first served.

    Args:
        device: its number among those that this process sees, from 0.
        max_streams: streams at most, 1 to 32; they are created when they are first needed. The hardware has
            few queues, and PyTorch's allocator keeps memory for each stream: more are seldom faster.
        priority: ``"normal"``, or ``"high"`` for the most urgent that the device has.
        budget_mb: MiB of device memory that may be allocated on one stream, by this package; what PyTorch and
            CuPy allocate is outside of it. ``None`` for ``HEADRACE_POOL_MB_PER_STREAM``, or 256 without it.
        completion: how the end of work is learned of: ``"event"``, a thread for each stream that is waited
            for blocks in the driver; ``"poll"``, one thread asks about everything; ``"hostfn"``, the driver
            calls back.
        spin_us: microseconds for which a thread asks the driver without a pause before it blocks, which costs
            that much of a core for each wait; ``None`` for the default, 20.
        warm_streams: streams that are created at once.
        pinned_mb: MiB of pinned host memory that are kept for their next use; ``None`` for 1,024.
        backend: ``"cuda"``, or ``"sim"`` for a simulated device.

    Raises:
        CudaUnavailable: there is no CUDA here; ``reason`` says why.
        CudaForkError: this process was forked after CUDA was used.
        ValueError: a setting is out of range, or there is no such device.
        ForkFailed: a warm stream could not be created.

    Making one opens the device, which takes a while the first time. Leaving ``async with`` closes it and
    waits until all streams have come back. One that is dropped closes.

    Example:
        >>> import asyncio
        >>> async def main():
        ...     async with StreamPool(backend="sim") as pool, pool.lease() as stream:
        ...         buffer = await stream.copy_to_device(b"there and back")
        ...         return bytes(await stream.copy_to_host(buffer))
        >>> asyncio.run(main())
        b'there and back'
    """

    def __new__(
        cls,
        device: int = 0,
        max_streams: int = 4,
        *,
        priority: Literal["normal", "high"] = "normal",
        budget_mb: int | None = None,
        completion: Literal["event", "poll", "hostfn"] = "event",
        spin_us: float | None = None,
        warm_streams: int = 0,
        pinned_mb: int | None = None,
        backend: Literal["cuda", "sim"] = "cuda",
    ) -> Self: ...
    def lease(self, *, timeout: float | None = None, key: Hashable = None) -> CudaLeasing:
        """Borrow a stream: ``async with pool.lease() as stream``, or await it and call ``stream.release()``.

        First come, first served; the place in the line is taken when it is awaited, and given up when whoever
        awaits is cancelled. A stream is given back at the end of the block. What was put into it runs on, and
        it is lent again only when that is done.

        Args:
            timeout: seconds to wait; ``None`` for as long as it takes.
            key: a free stream that was last lent with this key is preferred, anything hashable; else the one
                that was used last. For engines that are bound to a stream.

        Awaiting raises :class:`~headrace.LeaseTimeout`, :class:`~headrace.PoolClosed`,
        :class:`~headrace.ForkFailed`, :class:`~headrace.ContextPoisoned` or :class:`~headrace.CudaForkError`.
        """

    def try_lease(self, *, key: Hashable = None) -> Stream:
        """Borrow a stream if one is free now: ``with pool.try_lease() as stream``.

        Raises:
            Capacity: none is free.
            The same as :meth:`lease` otherwise.
        """

    def lease_blocking(self, *, timeout: float | None = None, key: Hashable = None) -> Stream:
        """As :meth:`lease`, for threads without a loop, which it blocks. The interpreter is free meanwhile.

        Raises:
            RuntimeError: a loop runs on this thread.
        """

    def resolve(self, id: int) -> Stream | None:
        """The stream of that number. 0 is the device's default stream, which always works and is never lent;
        a stream of the pool works as long as its lease. ``None`` if there is none.
        """

    def wrap(self, stream: object) -> Stream:
        """A stream that others have made and keep alive; see :func:`headrace.cuda.external_stream`."""

    @property
    def max_streams(self) -> int: ...
    @property
    def backend(self) -> Literal["cuda", "sim"]: ...
    @property
    def completion(self) -> Literal["event", "poll", "hostfn"]: ...
    @property
    def device(self) -> Any:
        """What the device says of itself, a :class:`headrace.cuda.Device`."""

    @property
    def healthy(self) -> bool:
        """Whether the device can be used: no sticky error was met."""

    @property
    def lost(self) -> BaseException | None:
        """The sticky error that was met, if one was."""

    def wait_lost(self) -> CudaPending[BaseException]:
        """An awaitable for the sticky error by which the device is lost; without one it waits for ever."""

    @property
    def closed(self) -> bool: ...
    def stats(self) -> Any:
        """How it does, a :class:`headrace.cuda.PoolStats`."""

    def close(self, timeout: float | None = None) -> CudaPending[bool]:
        """Lend nothing more, refuse whoever waits, and wait until all streams have come back and are done.

        Args:
            timeout: seconds to wait, ``None`` for as long as it takes.

        Returns:
            An awaitable: whether all have. It raises :class:`~headrace.ContextPoisoned` when the device is
            lost, :class:`~headrace.CudaForkError`, and :class:`~headrace.CudaError` where no thread can be
            started that looks after streams which are away.
        """

    def __aenter__(self) -> CudaDone[Self]: ...
    def __aexit__(self, kind: object, error: object, trace: object, /) -> CudaPending[None]:
        """Close it, and wait for as long as that takes. What was raised in the block goes on."""

    def _lose(self, code: int) -> None: ...
    def _stop(self, stopped: bool) -> None: ...
    def _fail(self, call: str, code: int, *, nth: int = 1, executed: bool = False) -> None: ...

@final
class CudaLeasing:
    def __await__(self) -> Generator[Any, None, Stream]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any: ...
    def close(self) -> None: ...
    def __aenter__(self) -> Self: ...
    def __aexit__(self, kind: object, error: object, trace: object, /) -> CudaDone[None]: ...

@final
class CudaPending(Generic[_T]):
    def __await__(self) -> Generator[Any, None, _T]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any: ...
    def close(self) -> None: ...

@final
class CudaDone(Generic[_T]):
    def __await__(self) -> Generator[Any, None, _T]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...

@final
class Stream:
    """Work for a device, in order. ``await stream`` waits until all that was put into it before is done.

    A lent one works until it is released, at the latest when it is dropped; then its methods raise
    :class:`~headrace.CudaError`. Libraries that know ``__cuda_stream__`` take it as it is.
    """

    @property
    def id(self) -> int:
        """Its number in the pool, from 1; 0 for the default stream and those of others."""

    @property
    def device(self) -> int:
        """The number of its device."""

    @property
    def priority(self) -> int:
        """As the driver counts: the smaller, the more urgent."""

    @property
    def kind(self) -> Literal["pooled", "default", "external"]: ...
    @property
    def live(self) -> bool:
        """Whether it can still be used."""

    @property
    def handle(self) -> int:
        """The driver's handle, a ``CUstream``, for other libraries; also ``int(stream)``."""

    def __int__(self) -> int: ...
    def __cuda_stream__(self) -> tuple[int, int]: ...
    def torch(self) -> Any:
        """The stream as PyTorch's: ``with torch.cuda.stream(stream.torch()): ...``.

        Raises:
            ImportError: PyTorch is not installed.
        """

    def cupy(self) -> Any:
        """The stream as CuPy's: ``with stream.cupy(): ...``.

        Raises:
            ImportError: CuPy is not installed.
        """

    def __await__(self) -> Generator[Any]: ...
    def synchronize(self) -> None:
        """Block the calling thread until all that was put into the stream before is done. The interpreter is
        free meanwhile.

        Raises:
            RuntimeError: a loop runs on this thread: ``await stream``.
        """

    def query(self) -> bool:
        """Whether all that was put into the stream before is done."""

    def record_event(self, *, timing: bool = False) -> Event:
        """Record the point that the stream comes to when all that was put into it before is done.

        Args:
            timing: whether the event takes times, for :meth:`Event.elapsed`.
        """

    def wait_event(self, event: Event) -> None:
        """Have what is put into the stream from now on wait for an event, of any stream of the device."""

    def allocate(
        self, nbytes: int, *, shape: list[int] | tuple[int, ...] | None = None, typestr: str = "|u1"
    ) -> DeviceBuffer:
        """Memory of the device, in the stream's order and from its budget. What is in it cannot be said.

        Args:
            nbytes: how much, above 0.
            shape: how it is to be read; ``None`` for one dimension.
            typestr: the type of its elements, as NumPy's ``dtype.str``.

        Raises:
            OutOfBudget: it does not fit the stream's budget.
            CudaError: the device has no more.
        """

    def copy_to_device(self, buffer: Any) -> CudaPending[DeviceBuffer]:
        """Copy a contiguous buffer (``bytes``, ``bytearray``, ``memoryview``, an array) to the device.
        Await it for the :class:`DeviceBuffer`.

        The bytes go through pinned memory. Up to 64 KiB they are copied there and the device's copy is put
        into the stream in this call; more is copied by a thread, which puts the device's copy into the stream
        later. So do not change the buffer before this was awaited, and what else you put into the stream
        comes behind the copy only from then on.

        Raises:
            BufferError: it is no contiguous buffer.
            ValueError: it is empty.

        Awaiting raises :class:`~headrace.OutOfBudget`, :class:`~headrace.CudaError` or
        :class:`~headrace.ContextPoisoned`. Whoever is cancelled gives up the buffer; the copy runs to its
        end.
        """

    def copy_to_host(self, buffer: DeviceBuffer, out: Any = None) -> CudaPending[Any]:
        """Copy a buffer of the device to the host. Await it for the bytes.

        Up to 64 KiB the copy is put into the stream in this call. More is by a thread later, which has to
        find pinned memory first: do not have the buffer written to before this was awaited.

        Args:
            buffer: what to copy. The stream waits for what other streams have written to it.
            out: a writable, contiguous buffer of the same number of bytes. It is written to when the copy is
                there, not by the device: one that was cancelled before is untouched.

        Returns:
            An awaitable for `out`; without it for a read-only ``memoryview`` of pinned memory, in the shape
            and type of what was copied to the device. ``numpy.asarray`` takes it without a copy. Pinned
            memory is scarce: do not keep it for long.
        """

    def spin(self, microseconds: int) -> None:
        """Put work into the stream that takes so long and does nothing else, for tests and benchmarks."""

    def release(self) -> None:
        """Give the stream back, if it is lent. What was put into it runs on. A second time is no error."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: object, error: object, trace: object, /) -> None: ...

@final
class Event:
    """A point in a stream. ``await event`` waits until the stream has come to it."""

    def query(self) -> bool:
        """Whether the stream has come to it."""

    def __await__(self) -> Generator[Any]: ...
    def synchronize(self) -> None:
        """Block the calling thread until the stream has come to it.

        Raises:
            RuntimeError: a loop runs on this thread: ``await event``.
        """

    def elapsed(self, later: Event) -> float:
        """Seconds from this point to a later one, both recorded with ``timing=True`` and reached."""

    @property
    def handle(self) -> int:
        """The driver's handle, a ``CUevent``; it is there as long as this object."""

@final
class DeviceBuffer:
    """Memory of a device, freed in the order of its stream when nobody holds it. Streams that use it through
    this package wait for each other where they must.

    Other libraries take it over by ``__dlpack__`` or ``__cuda_array_interface__``. Both have the consumer's
    stream wait for what was written: DLPack's ``stream`` is -1 for none, ``None`` or 1 for the default
    stream, 2 for the thread's, or a handle.

    When a consumer of DLPack lets go of it, the memory is kept until what was queued by then is done: on the
    stream that it named, if that is a pool's or the default stream, else on the whole device, which a thread
    waits for. With -1, and for whoever used ``__cuda_array_interface__``, nothing tells when the last kernel
    has ended: call :meth:`record_use` after it.
    """

    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def typestr(self) -> str:
        """The type of its elements, as NumPy's ``dtype.str``."""

    @property
    def device(self) -> int:
        """The number of its device."""

    @property
    def address(self) -> int:
        """Its address on the device."""

    def wait_on(self, stream: Stream) -> None:
        """Have a stream wait for what others do with the buffer, before your own kernels use it there."""

    def record_use(self, stream: Stream) -> None:
        """Keep the memory until a stream has come to the end of what was put into it so far. Call it after
        your own kernels that use the buffer, unless its own stream runs them.
        """

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
