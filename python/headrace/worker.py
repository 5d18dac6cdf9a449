"""Serving engines on the running loop: ``serve``. `_running.py` has ``run``, which does nothing else."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, cast

from headrace import _headrace
from headrace._engine import Runner, engine_name
from headrace._headrace import Codec, EngineSlot, WorkerSettings
from headrace._loop import current_hub
from headrace.codec import codec, encode_item

MIB = 1024 * 1024


class Worker:
    """A listening worker. Made by :func:`serve`; also an asynchronous context manager that closes it."""

    def __init__(self, native: _headrace.Worker, runners: list[Runner]) -> None:
        self._native = native
        self._runners = runners

    @property
    def address(self) -> str:
        """Where it listens, as ``"host:port"`` or ``"unix:/path"``: what a router connects to."""
        return self._native.address

    @property
    def metrics_address(self) -> str | None:
        """Where metrics and health are told, with the real port; ``None`` if nowhere."""
        return self._native.metrics_address

    @property
    def instance_id(self) -> str:
        """Its identity, new for each worker: 16 hexadecimal digits."""
        return self._native.instance_id

    @property
    def endpoints(self) -> list[str]:
        """Names of its endpoints, sorted."""
        return self._native.endpoints

    @property
    def ready(self) -> bool:
        """Whether routers are told to send requests here: it does not drain, and its engines answer."""
        return self._native.ready

    @property
    def unready_reason(self) -> str | None:
        """Why it is not ready: it drains, an engine is silent at its health check, or the device of a
        batcher's ``streams`` is lost. ``None`` if it is.
        """
        return self._native.unready_reason

    def stats(self) -> dict[str, int]:
        """Counts at this moment: ``running``, ``queued``, ``links``, ``streams``, and the totals
        ``accepted_total`` and ``rejected_total`` since the start.
        """
        return self._native.stats()

    async def drain(self, timeout: float | None = None) -> None:
        """Take no new requests, let those in flight finish, then close.

        Args:
            timeout: seconds to wait for them; ``None`` for the worker's ``drain_timeout``. Those that are
                left then end with ``Disconnected(reason="shutdown")`` at their callers.
        """
        await self._native.drain(timeout)
        await _close(self._runners)

    async def aclose(self) -> None:
        """Close at once. Requests in flight end with ``Disconnected(reason="shutdown")``."""
        self._native.close()
        await _close(self._runners)

    async def wait_closed(self) -> None:
        """Wait until the worker is closed by :meth:`drain` or :meth:`aclose`."""
        await self._native.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<headrace.Worker {self.instance_id} at {self.address} serving {self.endpoints}>"


class Serving:
    """What :func:`serve` returns: await it for the worker, or enter it with ``async with``."""

    def __init__(self, begin: Callable[[], Any]) -> None:
        self._begin = begin
        self._worker: Worker | None = None

    def __await__(self) -> Generator[Any, None, Worker]:
        return self._begin().__await__()

    async def __aenter__(self) -> Worker:
        self._worker = await self
        return self._worker

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._worker is not None:
            await self._worker.aclose()


def serve(
    engine: Any,
    address: str = "127.0.0.1:0",
    *,
    namespace: str = "default",
    concurrency: int = 64,
    queue: int = 64,
    drain_timeout: float = 30.0,
    ping_interval: float = 5.0,
    ping_timeout: float = 5.0,
    health_check: Any = None,
    health_interval: float = 5.0,
    health_timeout: float = 5.0,
    max_message_bytes: int = 32 * MIB,
    streams_per_link: int = 65_536,
    stream_window: int = 256 * 1024,
    discovery: str | bool | None = None,
    metrics: str | None = None,
    metrics_labels: Mapping[str, str] | None = None,
    request_type: Any = None,
    expose_tracebacks: bool = False,
    token: str | None = None,
    insecure: bool = False,
) -> Serving:
    """Serve engines on the running loop.

    Args:
        engine: an asynchronous generator function (its items are the stream), a coroutine function, a
            function, a generator function, or an object or class with a ``generate`` method of such a kind;
            called with ``(request)`` or ``(request, ctx)``, whichever it takes. An asynchronous engine that
            takes a context reads request streams as ``ctx.requests``; one whose first parameter is
            annotated as an ``AsyncIterator`` is given the stream as its request. Or a dictionary of endpoint
            names and engines; a single engine's endpoint is its ``__name__``. Synchronous engines run on
            threads of their own, several at once when requests overlap; ``concurrency=1`` prevents that. A
            :class:`Batcher` is an engine too: requests of all routers share its batches.
        address: ``"host:port"`` (port 0: the system chooses) or ``"unix:/path"``.
        namespace: routers of another namespace are refused.
        concurrency: requests that run at once.
        queue: requests that wait for a place; beyond it callers get ``Overloaded``.
        drain_timeout: seconds that :meth:`Worker.drain` waits.
        ping_interval: seconds of silence after which a router is asked whether it is there.
        ping_timeout: further seconds after which it is given up.
        health_check: a small request that the engine can always answer, with request id ``"health-check"``.
            An engine that has answered nobody for ``health_interval`` is asked that, as one of its
            ``concurrency`` requests; if it then still answers nobody, or fails, the worker is not ready, and
            routers pass it over until it answers again. With a dictionary of engines, a dictionary of their
            names and requests. ``None`` for the ``health_check`` that the engine itself has as an attribute,
            and no check without one; ``False`` for none.
        health_interval: seconds of an engine's silence after which it is asked.
        health_timeout: further seconds after which the worker is not ready; longer than an engine that has
            as many requests as it takes may be silent.
        max_message_bytes: largest request and item.
        streams_per_link: streams open at once on one router's link.
        stream_window: bytes that a request stream may be ahead of its engine, 4 KiB to 1 GiB.
        discovery: where routers find the worker: ``"file:///dir"``, a directory in which it lists itself;
            ``None`` for this user's own directory for the namespace, where ``Router()`` looks; ``False`` for
            nowhere. The entry goes when the worker drains or closes, or its process ends in any way. When
            the user's directory cannot be used, a ``RuntimeWarning`` says why; with ``True``, or a directory
            that is named, that is an ``OSError``.
        metrics: ``"host:port"`` or ``"unix:/path"`` where ``/metrics``, ``/live`` and ``/ready`` answer over
            HTTP; port 0 lets the system choose, see :attr:`Worker.metrics_address`. All workers and routers
            of this process that name the same address share it. ``None`` for nowhere.
        metrics_labels: labels that all carries which the metrics tell of this worker and its endpoints, the
            families ``headrace_worker_...``, such as ``{"model": "llama", "zone": "b"}``: up to 8, values up
            to 128 bytes, names that Prometheus takes and that these families do not have. Two workers of a
            process that differ in them are counted apart. ``None`` for no labels.
        request_type: a type that requests, and the items of request streams, are decoded into (see
            ``Router(response_type=)``).
        expose_tracebacks: tell callers the traceback of an engine that raises.
        token: routers must present it.
        insecure: allow addresses off loopback, also for ``metrics``. Nothing on the wire is encrypted.

    Returns:
        Something to await for the :class:`Worker`, or to enter with ``async with``. The worker listens when
        that is done.

    Raises:
        ValueError: a setting or the address cannot be used; the message names it.
        TypeError: an engine is none, or a health check cannot be encoded.
        OSError: the system refuses to listen there or at ``metrics``, or ``discovery`` names a directory that
            cannot be used.
        StartupError: a batcher did not start.

    Example:
        >>> async def greet(request, ctx):
        ...     for word in ("hello", request["name"]):
        ...         yield {"word": word}
        >>> async with serve(greet) as worker:  # doctest: +SKIP
        ...     print(worker.address)
    """
    engines: dict[str, Any]
    if isinstance(engine, Mapping):
        engines = {str(name): each for name, each in cast("Mapping[Any, Any]", engine).items()}
    else:
        engines = {engine_name(engine): engine}
    settings = WorkerSettings(
        address,
        namespace=namespace,
        concurrency=concurrency,
        queue=queue,
        drain_timeout=drain_timeout,
        ping_interval=ping_interval,
        ping_timeout=ping_timeout,
        health_interval=health_interval,
        health_timeout=health_timeout,
        max_message_bytes=max_message_bytes,
        streams_per_link=streams_per_link,
        stream_window=stream_window,
        discovery=discovery,
        metrics=metrics,
        metrics_labels=metrics_labels,
        token=token,
        insecure=insecure,
    )
    runners = {
        name: Runner(each, concurrency, expose_tracebacks=expose_tracebacks) for name, each in engines.items()
    }
    checks = _health_checks(health_check, runners, named=isinstance(engine, Mapping))
    values = codec(request_type)

    async def begin() -> Worker:
        for runner in runners.values():
            runner.attach(asyncio.get_running_loop())
        slots = [(name, _slot(runner, values, checks.get(name))) for name, runner in runners.items()]
        try:
            for runner in runners.values():
                await runner.prepare()
            native = await _headrace.bind(settings, slots, current_hub())
        except BaseException:
            await _close(runners.values())
            raise
        for runner in runners.values():
            runner.watch(native.declare_unready)
        if native.unlisted is not None:
            warnings.warn(
                f"routers cannot find this worker by themselves: {native.unlisted}; "
                "name another directory with discovery=, or pass discovery=False",
                RuntimeWarning,
                stacklevel=2,
            )
        return Worker(native, list(runners.values()))

    return Serving(begin)


async def _close(runners: Iterable[Runner]) -> None:
    for runner in runners:
        await runner.close()


def _slot(runner: Runner, values: Codec, health_check: tuple[int, bytes] | None) -> EngineSlot:
    return EngineSlot(
        runner.start,
        values,
        runner.refuses_single,
        runner.refuses_stream,
        runner.iterator_first,
        health_check,
    )


def _health_checks(given: Any, runners: Mapping[str, Runner], *, named: bool) -> dict[str, tuple[int, bytes]]:
    """The encoded health checks of the endpoints that have one; `named` when they came in a dictionary."""
    if given is False:
        return {}
    if given is None:
        checks = {name: runner.health_check for name, runner in runners.items()}
    elif not named:
        checks = dict.fromkeys(runners, given)
    elif isinstance(given, Mapping):
        checks = {str(name): check for name, check in cast("Mapping[Any, Any]", given).items()}
    else:
        raise ValueError(
            "health_check must be a dictionary of endpoint names and requests, as the engines are"
        )
    encoded: dict[str, tuple[int, bytes]] = {}
    for name, check in checks.items():
        if check is None:
            continue
        if name not in runners:
            raise ValueError(f"health_check names {name!r}, and no such engine is served")
        if runners[name].refuses_single:
            raise ValueError(f"health_check: {name!r} takes only streams of requests, which are no check")
        if callable(check):
            raise TypeError(
                f"the health_check of {name!r} must be a request to send it, not a function; "
                "health_check=False serves an engine whose attribute of that name is something else"
            )
        encoded[name] = encode_item(check)
    return encoded
