"""Every exception that Headrace raises. Each class is one thing that a caller can act on; each message names
what happened, how far the call had come, the request and the setting that helps. The one invariant: an error
of Headrace is a ``HeadraceError``, and ``asyncio.CancelledError`` is never wrapped.
"""

from __future__ import annotations

from typing import TypedDict, Unpack


class CallFacts(TypedDict, total=False):
    """What every error about a call can say; see :class:`HeadraceError`."""

    phase: str | None
    request_id: str | None
    instance_id: str | None
    items: int


class HeadraceError(Exception):
    """Base of all.

    Attributes:
        phase: how far the call had come: ``"unsent"``, ``"sent"``, ``"accepted"`` or ``"streaming"``;
            ``None`` when the error is not about a call.
        request_id: the call's request id, if there is a call.
        instance_id: the worker it was sent to, if it was.
        items: items that the caller had read before.
    """

    def __init__(
        self,
        message: str = "",
        *,
        phase: str | None = None,
        request_id: str | None = None,
        instance_id: str | None = None,
        items: int = 0,
    ) -> None:
        super().__init__(message)
        self.phase = phase
        self.request_id = request_id
        self.instance_id = instance_id
        self.items = items


class CannotConnect(HeadraceError, ConnectionError):
    """No worker could be connected to within ``instance_timeout``. Nothing was sent."""


class Disconnected(HeadraceError, ConnectionError):
    """The worker was lost, or shut down, before the stream was complete.

    Attributes:
        reason: why; ``"shutdown"`` when the worker was stopped with the request in flight.
        maybe_executed: whether the request may have run.
    """

    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "",
        maybe_executed: bool = True,
        **call: Unpack[CallFacts],
    ) -> None:
        super().__init__(message, **call)
        self.reason = reason
        self.maybe_executed = maybe_executed


class NoInstances(HeadraceError):
    """No worker took requests within ``instance_timeout``."""


class NoSuchEndpoint(HeadraceError):
    """No worker has this endpoint, or it was left out and there is not exactly one.

    Attributes:
        endpoint: the one asked for; empty when it was left out.
        available: those there are.
    """

    def __init__(
        self,
        message: str = "",
        *,
        endpoint: str = "",
        available: list[str] | None = None,
        **call: Unpack[CallFacts],
    ) -> None:
        super().__init__(message, **call)
        self.endpoint = endpoint
        self.available = available or []


class NotUnary(HeadraceError):
    """``Router.call`` wants exactly one item; the engine yielded none or several."""


class Overloaded(HeadraceError):
    """Every worker that was asked is at its limits, or draining.

    Attributes:
        retry_after: seconds after which the worker expects to have room; 0 when it did not say.
    """

    def __init__(
        self,
        message: str = "",
        *,
        retry_after: float = 0.0,
        **call: Unpack[CallFacts],
    ) -> None:
        super().__init__(message, **call)
        self.retry_after = retry_after


class DeadlineExceeded(HeadraceError, TimeoutError):
    """The call's ``timeout`` passed. The engine was cancelled.

    Attributes:
        elapsed: seconds since the call began.
    """

    def __init__(
        self,
        message: str = "",
        *,
        elapsed: float = 0.0,
        **call: Unpack[CallFacts],
    ) -> None:
        super().__init__(message, **call)
        self.elapsed = elapsed


class ItemTimeout(HeadraceError, TimeoutError):
    """The caller waited on an empty stream for ``item_timeout``. The engine was cancelled."""


class SlowConsumer(HeadraceError):
    """The caller left a full window unread for ``slow_consumer_timeout``. The engine was cancelled."""


class PayloadTooLarge(HeadraceError, ValueError):
    """A request, an item or metadata are over a limit. Nothing was sent.

    Attributes:
        limit: the limit in force.
        actual: the size; 0 when only the other side knows.
        setting: the setting that raises the limit.
    """

    def __init__(
        self,
        message: str = "",
        *,
        limit: int = 0,
        actual: int = 0,
        setting: str = "",
        **call: Unpack[CallFacts],
    ) -> None:
        super().__init__(message, **call)
        self.limit = limit
        self.actual = actual
        self.setting = setting


class ProtocolError(HeadraceError):
    """A peer sent something that this version cannot understand."""


class VersionMismatch(HeadraceError):
    """The two sides have no version of the protocol in common."""


class AuthenticationError(HeadraceError):
    """The worker did not accept this router's token."""


class EngineError(HeadraceError):
    """The engine failed: it raised, or yielded something that cannot be sent.

    Attributes:
        engine_type: the exception's type name.
        engine_message: the exception's text.
        engine_traceback: its traceback, when the worker exposes it.
    """

    def __init__(
        self,
        message: str = "",
        *,
        engine_type: str = "",
        engine_message: str = "",
        engine_traceback: str | None = None,
        **call: Unpack[CallFacts],
    ) -> None:
        super().__init__(message, **call)
        self.engine_type = engine_type
        self.engine_message = engine_message
        self.engine_traceback = engine_traceback


class ForkError(HeadraceError, RuntimeError):
    """Headrace was used in a process that was forked after it had started."""


class BatchError(HeadraceError):
    """Base of what a :class:`~headrace.Batcher` tells those who submit. Each caller gets an instance of their
    own.
    """


class Rejected(BatchError):
    """The item was not admitted; the function has not seen it.

    What to do depends on :attr:`reason`: for ``queue_full``, ``queue_cost``, ``client_cap`` and
    ``would_expire`` submit it again later, or tell whoever asked to come back; the others will not pass by
    waiting.

    Attributes:
        reason: ``"queue_full"`` (``queue_capacity``), ``"queue_cost"``, ``"client_cap"``
            (``max_in_flight_per_client``), ``"too_large"`` (``max_cost``), ``"invalid"`` (its ``key`` or
            ``cost`` function raised, which is the cause, or its priority does not exist), ``"expired"`` (it
            had no time left), ``"would_expire"`` (so many wait before it that its deadline would pass;
            ``predictive_expiry``).
        retry_after: seconds after which there is likely to be room; ``None`` when that is not known, or does
            not help.
    """

    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "",
        retry_after: float | None = None,
        **call: Unpack[CallFacts],
    ) -> None:
        super().__init__(message, **call)
        self.reason = reason
        self.retry_after = retry_after


class Expired(BatchError, TimeoutError):
    """The item's time was over, or could not be kept any more, while it waited; the function has not seen it.

    Raise ``timeout``, add ``workers``, or lower ``queue_capacity`` so that callers are refused sooner.

    Attributes:
        waited: seconds that it waited.
        predicted: whether the deadline was still ahead, but would have been missed (``predictive_expiry``).
    """

    def __init__(
        self,
        message: str = "",
        *,
        waited: float = 0.0,
        predicted: bool = False,
        **call: Unpack[CallFacts],
    ) -> None:
        super().__init__(message, **call)
        self.waited = waited
        self.predicted = predicted


class ResponseTimeout(BatchError, TimeoutError):
    """The item's time was over while the function had it, which may still finish it.

    Raise the setting that :attr:`limit` names, or see why the function takes so long.

    Attributes:
        waited: seconds that it waited for the function.
        ran: seconds that the function has had it.
        limit: the setting: ``"timeout"`` or ``"response_timeout"``.
    """

    def __init__(
        self,
        message: str = "",
        *,
        waited: float = 0.0,
        ran: float = 0.0,
        limit: str = "timeout",
        **call: Unpack[CallFacts],
    ) -> None:
        super().__init__(message, **call)
        self.waited = waited
        self.ran = ran
        self.limit = limit


class BatchFailed(BatchError):
    """The function raised, which failed its whole batch. ``__cause__`` is what it raised.

    A function that returns an exception in an item's slot fails that item alone; ``isolate_failures=True``
    finds the item that makes the others fail.

    Attributes:
        size: items of the batch.
    """

    def __init__(self, message: str = "", *, size: int = 0, **call: Unpack[CallFacts]) -> None:
        super().__init__(message, **call)
        self.size = size


class WrongResultCount(BatchError):
    """The function answered its batch with more or fewer results than the batch had items. Correct it.

    Attributes:
        expected: items of the batch.
        actual: results.
    """

    def __init__(
        self,
        message: str = "",
        *,
        expected: int = 0,
        actual: int = 0,
        **call: Unpack[CallFacts],
    ) -> None:
        super().__init__(message, **call)
        self.expected = expected
        self.actual = actual


class WorkerLost(BatchError):
    """The worker that had the item was given up. The function may have run, or may still run.

    Attributes:
        ran: seconds that the function has had the item.
        hung: whether it had not returned within ``callback_timeout``; else the batcher was closed meanwhile.
    """

    def __init__(
        self,
        message: str = "",
        *,
        ran: float = 0.0,
        hung: bool = False,
        **call: Unpack[CallFacts],
    ) -> None:
        super().__init__(message, **call)
        self.ran = ran
        self.hung = hung


class Closed(BatchError):
    """The batcher is closed, or was closed while the item waited; the function has not seen it. ``drain``
    lets what waits run.
    """


class StartupError(BatchError):
    """A worker of the batcher did not start. ``__cause__`` is what ``on_start`` or ``warmup`` raised.

    Attributes:
        worker: the worker's number; ``None`` when it is not about one.
    """

    def __init__(
        self,
        message: str = "",
        *,
        worker: int | None = None,
        **call: Unpack[CallFacts],
    ) -> None:
        super().__init__(message, **call)
        self.worker = worker


class StartupTimeout(StartupError, TimeoutError):
    """The workers did not start within ``startup_timeout``. Raise it, or see why they take so long."""


class CudaError(HeadraceError):
    """Base of what :mod:`headrace.cuda` raises; by itself, a call that the driver refused, which harms
    nothing else.

    Attributes:
        code: the driver's number of the error; ``None`` when the driver was not asked.
        name: its name, such as ``"CUDA_ERROR_INVALID_VALUE"``.
        operation: what the driver was asked, such as ``"cuEventQuery"``.
    """

    code: int | None = None
    name: str | None = None
    operation: str | None = None

    def __init__(self, message: str = "", **facts: object) -> None:
        super().__init__(message)
        vars(self).update(facts)


class CudaUnavailable(CudaError):
    """There is no CUDA here; :attr:`reason` says why. ``StreamPool(backend="sim")`` needs none."""

    reason: str = ""


class Capacity(CudaError):
    """All streams of the pool are lent. Raise ``max_streams``, or wait with ``lease``.

    Attributes:
        max: streams of the pool.
    """

    max: int = 0


class LeaseTimeout(CudaError, TimeoutError):
    """No stream came free within ``timeout``; :attr:`waited` is how many seconds that was."""

    waited: float = 0.0


class PoolClosed(CudaError):
    """The pool of streams is closed."""


class OutOfBudget(CudaError):
    """An allocation does not fit the stream's budget (``budget_mb``). The driver was not asked.

    Attributes:
        requested: bytes asked for.
        current: bytes in use, freed ones included that the stream has not come to.
        remaining: bytes left.
        limit: the budget.
    """

    requested: int = 0
    current: int = 0
    remaining: int = 0
    limit: int = 0


class ContextPoisoned(CudaError):
    """A sticky error: nothing works on this device in this process any more. Restart the process.

    Attributes:
        cause: what the driver said first.
    """

    cause: str = ""


class CudaForkError(CudaError, ForkError):
    """CUDA was used in a process that was forked after it had been. Start processes by spawning."""


class ForkFailed(CudaError):
    """A stream could not be created. The default stream never stands in for it."""


class StreamKilled(Exception):
    """Inside a worker: nobody wants the engine's answer any more. Callers never see it."""


__all__ = [
    "HeadraceError",
    "CannotConnect",
    "Disconnected",
    "NoInstances",
    "NoSuchEndpoint",
    "NotUnary",
    "Overloaded",
    "DeadlineExceeded",
    "ItemTimeout",
    "SlowConsumer",
    "PayloadTooLarge",
    "ProtocolError",
    "VersionMismatch",
    "AuthenticationError",
    "EngineError",
    "ForkError",
    "BatchError",
    "Rejected",
    "Expired",
    "ResponseTimeout",
    "BatchFailed",
    "WrongResultCount",
    "WorkerLost",
    "Closed",
    "StartupError",
    "StartupTimeout",
    "CudaError",
    "CudaUnavailable",
    "Capacity",
    "LeaseTimeout",
    "PoolClosed",
    "OutOfBudget",
    "ContextPoisoned",
    "CudaForkError",
    "ForkFailed",
]
