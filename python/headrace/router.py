"""Calling engines: ``Router``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType, TracebackType
from typing import Any, Literal, Self

from headrace import _headrace
from headrace._headrace import Call, RouterSettings, UnaryCall
from headrace._loop import current_hub
from headrace.codec import codec

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Instance:
    """What a router knows of one worker."""

    address: str
    """Where it is."""
    instance_id: str
    """Its identity; empty until it was first connected."""
    state: Literal["up", "unready", "draining", "down", "ejected", "tombstoned"]
    """``"up"`` takes requests, ``"unready"`` is connected but its engine does not answer its health check,
    ``"draining"`` is connected but takes no more, ``"down"`` is not connected,
    ``"ejected"`` has lost its link under calls too often lately and is used only if there is no other,
    ``"tombstoned"`` is no longer listed."""
    endpoints: list[str]
    """Names of its endpoints."""
    in_flight: int
    """Calls of this router in flight there."""
    last_error: str | None
    """Why it is down."""


Policy = Literal["p2c", "round_robin", "random", "least_loaded", "hash", "direct"]
"""The names of the routing policies; see :class:`Router`."""


def _chosen_by(choose: Callable[[list[Instance]], Instance]) -> Callable[[list[dict[str, Any]]], int]:
    """Make of a policy what the native router calls."""

    def pick(entries: list[dict[str, Any]]) -> int:
        instances = [Instance(**entry) for entry in entries]
        picked: Any = choose(instances)
        if picked not in instances:
            raise ValueError(f"the policy returned {picked!r}, which is none of the instances it was given")
        return instances.index(picked)

    return pick


class Router:
    """Keeps one link to each worker it knows and sends each call to one of them.

    Make it where a loop runs, or before; it connects when it is first used on a loop and belongs to that
    loop. Close it with ``async with`` or :meth:`aclose`.

    Args:
        targets: where the workers are: ``"host:port"``, ``"unix:/path"``, or ``"file:///dir"``, a directory
            in which workers list themselves; one, or a sequence. ``None`` for this user's own directory for
            the namespace, in which ``serve`` lists workers unless told otherwise. Workers that are listed
            later are found within a second.
        namespace: workers of another namespace are refused.
        policy: how an instance is picked among those that take the endpoint: ``"p2c"``, the better of two
            random ones by requests in flight times recent peak latency; ``"round_robin"``; ``"random"``;
            ``"least_loaded"``, the one with the fewest requests of this router in flight; ``"hash"``, by the
            call's ``affinity=`` (without one as ``"p2c"``); ``"direct"``, only by the call's ``instance=``.
            Or a function that is given a list of :class:`Instance`, never empty, and returns one of them;
            it runs on the loop for each attempt and must not block. What it raises fails the call. It is
            not asked where there is only one worker.
        timeout: deadline of a call in seconds, from the await to its last item. ``None`` for none.
        item_timeout: seconds that a caller waits on an empty stream, the first item included. ``None`` for
            ever.
        instance_timeout: seconds that a call waits until an instance takes requests.
        retries: further attempts, on other instances, for a call that provably did not run, or is
            ``idempotent``. All calls together make no more than a fifth of their number, and three each
            second.
        max_resume_bytes: bytes of encoded items that are kept of a stream with ``resume=``; one that has
            brought more is not resumed.
        response_type: a type that items are decoded into: anything msgspec decodes (Structs, dataclasses,
            TypedDicts), a pydantic model, or ``memoryview`` for raw items without a copy.
        stream_window: bytes that a stream may send ahead of its reader.
        link_window: bytes that a link may send ahead of this process.
        ping_interval: seconds of silence after which a worker is asked whether it is there.
        ping_timeout: further seconds after which it is given up.
        slow_consumer_timeout: seconds that a caller may leave a full window unread. ``None`` for ever.
        max_message_bytes: largest request and item.
        metrics: ``"host:port"`` or ``"unix:/path"`` where ``/metrics``, ``/live`` and ``/ready`` answer over
            HTTP, shared with the workers and routers of this process that name the same address; opened when
            the router connects. ``None`` for nowhere.
        token: presented to the workers.
        insecure: allow addresses off loopback, also for ``metrics``. Nothing on the wire is encrypted.

    Raises:
        ValueError: a setting or an address cannot be used; the message names it.

    Example:
        >>> async with Router("127.0.0.1:7411") as router:  # doctest: +SKIP
        ...     async for item in await router.generate({"name": "world"}, timeout=5):
        ...         print(item["word"])
    """

    def __init__(
        self,
        targets: str | Sequence[str] | None = None,
        *,
        namespace: str = "default",
        policy: Policy | Callable[[list[Instance]], Instance] = "p2c",
        timeout: float | None = 600.0,
        item_timeout: float | None = 60.0,
        instance_timeout: float = 5.0,
        retries: int = 2,
        max_resume_bytes: int = MIB,
        response_type: Any = None,
        stream_window: int = 256 * 1024,
        link_window: int = 4 * MIB,
        ping_interval: float = 5.0,
        ping_timeout: float = 5.0,
        slow_consumer_timeout: float | None = 60.0,
        max_message_bytes: int = 32 * MIB,
        metrics: str | None = None,
        token: str | None = None,
        insecure: bool = False,
    ) -> None:
        self._settings = RouterSettings(
            targets if targets is None else [targets] if isinstance(targets, str) else list(targets),
            namespace=namespace,
            policy=policy if isinstance(policy, str) else _chosen_by(policy),
            timeout=timeout,
            item_timeout=item_timeout,
            instance_timeout=instance_timeout,
            retries=retries,
            max_resume_bytes=max_resume_bytes,
            stream_window=stream_window,
            link_window=link_window,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            slow_consumer_timeout=slow_consumer_timeout,
            max_message_bytes=max_message_bytes,
            metrics=metrics,
            token=token,
            insecure=insecure,
        )
        self._timeout = timeout
        self._item_timeout = item_timeout
        self._instance_timeout = instance_timeout
        self._codec = codec(response_type)
        self._native: _headrace.Router | None = None
        self._closed = False
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            self._connected()

    def _connected(self) -> _headrace.Router:
        native = self._native
        if native is None:
            if self._closed:
                raise RuntimeError("the router is closed")
            native = self._native = _headrace.Router(self._settings, current_hub())
        return native

    def generate(
        self,
        request: Any,
        *,
        endpoint: str | None = None,
        timeout: float | EllipsisType | None = ...,
        item_timeout: float | EllipsisType | None = ...,
        metadata: Mapping[str, str] | None = None,
        instance: str | None = None,
        affinity: str | None = None,
        idempotent: bool = False,
        resume: Callable[[Any, list[Any]], Any] | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        response_type: Any = None,
    ) -> Call[Any]:
        """Call an engine and read its answer as a stream.

        Nothing is sent before the result is awaited, iterated or entered.

        Args:
            request: anything that can be sent: plain values, ``bytes``, dataclasses, msgspec Structs,
                pydantic models, numpy arrays. It is encoded at once. Or an asynchronous iterator, which makes
                the request a stream of the items that it yields: it runs in a task of its own from the await
                on, once a worker has accepted the request, as far ahead of the engine as the worker's
                ``stream_window`` allows, and is closed when nobody takes its items any more.
            endpoint: the endpoint's name; may be left out when the worker has exactly one.
            timeout: deadline in seconds instead of the router's; ``None`` for none.
            item_timeout: the same for the wait on an empty stream.
            metadata: strings for the engine, as ``ctx.metadata``.
            instance: the worker to use, by instance id or address.
            affinity: calls with the same affinity go to the same instance as long as it is there and has no
                more than a quarter above the mean of this router's requests, whatever the policy. One
                instance more moves about 1/n of all affinities.
            idempotent: the request may run more than once: it is tried again, on another instance, also when
                it was lost after it may have run, as long as no item had been read. Not for request streams.
            resume: a function ``(request, items) -> request`` that continues a lost stream: given the request
                and the items read so far, it returns the request for what is missing, which is sent to any
                instance within the remaining deadline. The reader sees one stream; ``stream.resumed`` counts.
                It permits a second run from the start of the call on. It is called on the loop and must not
                block; what it raises ends the stream. Attempts that bring no item are limited by ``retries``.
                Not for request streams: nobody keeps their items.
            request_id: a name for the request; a random one by default.
            traceparent: W3C trace context.
            response_type: a type that items are decoded into, instead of the router's.

        Returns:
            Something to await for a :class:`ResponseStream`; ``async for`` and ``async with`` take it
            directly too. Awaiting it is done when the engine has returned its stream.

        Raises:
            TypeError: the request cannot be encoded; the message names the part.
            ValueError: a time-out is out of range, or ``idempotent`` or ``resume`` go with a request stream.
            Exception: when awaited or iterated, whatever a request stream raised.
            HeadraceError: when awaited; see ``headrace.errors`` for what each subclass says.
        """
        return self._connected().call(
            request,
            self._codec if response_type is None else codec(response_type),
            endpoint,
            self._timeout if timeout is ... else timeout,
            self._item_timeout if item_timeout is ... else item_timeout,
            None if metadata is None else list(metadata.items()),
            instance,
            affinity,
            idempotent,
            resume,
            request_id,
            traceparent,
            False,
        )

    def call(
        self,
        request: Any,
        *,
        endpoint: str | None = None,
        timeout: float | EllipsisType | None = ...,
        item_timeout: float | EllipsisType | None = ...,
        metadata: Mapping[str, str] | None = None,
        instance: str | None = None,
        affinity: str | None = None,
        idempotent: bool = False,
        request_id: str | None = None,
        traceparent: str | None = None,
        response_type: Any = None,
    ) -> UnaryCall[Any]:
        """Call an engine that answers with exactly one item.

        Args:
            request, endpoint, timeout, item_timeout, metadata, instance, affinity, idempotent, request_id,
                traceparent, response_type: as for :meth:`generate`.

        Returns:
            Something to await for the item.

        Raises:
            NotUnary: when awaited: the engine ended without an item, or yielded several.
            HeadraceError: when awaited, as for :meth:`generate`.
        """
        return self._connected().call(
            request,
            self._codec if response_type is None else codec(response_type),
            endpoint,
            self._timeout if timeout is ... else timeout,
            self._item_timeout if item_timeout is ... else item_timeout,
            None if metadata is None else list(metadata.items()),
            instance,
            affinity,
            idempotent,
            None,
            request_id,
            traceparent,
            True,
        )

    @property
    def metrics_address(self) -> str | None:
        """Where metrics and health are told, with the real port; ``None`` if nowhere."""
        return self._connected().metrics_address

    def instances(self) -> list[Instance]:
        """What is known of each worker."""
        return [Instance(**entry) for entry in self._connected().instances()]

    async def wait_for_instances(self, count: int = 1, timeout: float | None = None) -> None:
        """Wait until workers take requests.

        Args:
            count: how many.
            timeout: seconds; ``None`` for the router's ``instance_timeout``.

        Raises:
            TimeoutError: there were fewer when the time was up.
        """
        wait = self._instance_timeout if timeout is None else timeout
        if not await self._connected().wait_for_instances(count, wait):
            states = ", ".join(
                f"{each.address} {each.state}" + (f" ({each.last_error})" if each.last_error else "")
                for each in self.instances()
            )
            raise TimeoutError(f"fewer than {count} instances after {wait:g} s: {states or 'none known'}")

    def stats(self) -> dict[str, int]:
        """Counts at this moment: ``links``, ``streams`` open on them, ``in_flight`` (calls whose stream has
        not opened yet), and the totals ``calls_total`` and ``retries_total`` since the start.
        """
        return self._connected().stats()

    async def aclose(self) -> None:
        """Close every link. Streams that are still open fail at their readers with ``Disconnected``."""
        self._closed = True
        native, self._native = self._native, None
        if native is not None:
            native.close()

    async def __aenter__(self) -> Self:
        self._connected()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
