"""Streams of CUDA: a pool that lends each to one user at a time, work that is awaited, copies that overlap.

Nothing is loaded before the first call: this imports on every machine. ``StreamPool(backend="sim")`` is a
simulated device, for programs and tests on machines without a GPU; it is always visible as
``pool.backend == "sim"``, and its figures mean nothing.

A stream, its events and buffers belong to the loop on which they are awaited; nothing here blocks a loop. A
process that was forked after CUDA was used gets :class:`~headrace.CudaForkError`. What can go wrong is
:class:`headrace.CudaError` and what is derived from it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from headrace import _headrace
from headrace._headrace import DeviceBuffer, Event, Stream, StreamPool

# The native module's functions are this package's own.
# pyright: reportPrivateUsage=false


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """What a device says of itself.

    Attributes:
        ordinal: its number among those that this process sees, from 0.
        name: its name.
        memory_bytes: its memory.
        compute_capability: major and minor.
        copy_engines: how many copies run beside kernels and beside each other.
        memory_pools: whether it has memory pools in the order of streams.
    """

    ordinal: int
    name: str
    memory_bytes: int
    compute_capability: tuple[int, int]
    copy_engines: int
    memory_pools: bool


@dataclasses.dataclass(frozen=True, slots=True)
class PoolStats:
    """How a pool does at one moment.

    Attributes:
        backend: ``"cuda"``, or ``"sim"`` for a simulated device.
        max_streams: streams at most.
        created: streams that are there.
        idle: those that are free.
        in_use: those that are lent.
        draining: those that were given back and still have work.
        waiting: how many wait for one.
        leases: leases so far.
        timeouts: those who did not get one in time.
        bytes_to_device: bytes copied to the device.
        bytes_to_host: bytes copied from it.
        device_bytes: bytes of device memory that the streams' budgets count.
        pinned_bytes: bytes of host memory that are pinned.
        errors: calls that the driver refused.
        busy: seconds for which streams were lent or drained, all together.
        poisoned: whether the device is lost.
        waited: seconds for which leases were waited for, all together.
        wait_times: how many leases took up to each number of seconds, and longer than the one before it.
    """

    backend: Literal["cuda", "sim"]
    max_streams: int
    created: int
    idle: int
    in_use: int
    draining: int
    waiting: int
    leases: int
    timeouts: int
    bytes_to_device: int
    bytes_to_host: int
    device_bytes: int
    pinned_bytes: int
    errors: int
    busy: float
    poisoned: bool
    waited: float
    wait_times: tuple[tuple[float, int], ...]


def is_available() -> bool:
    """Whether CUDA can be used here: there is a driver, and it finds a device.

    The first call loads the driver. A process that has made it must not be forked afterwards.
    """
    return unavailable_reason() is None


def unavailable_reason() -> str | None:
    """Why CUDA cannot be used here: no driver's library, one that is too old or only for linking, no device,
    a driver that does not start, a process that was forked. ``None`` if it can be used.
    """
    return _headrace._cuda_unavailable_reason()


def device_count() -> int:
    """How many devices there are; 0 if the driver finds none.

    Raises:
        CudaUnavailable: there is no driver.
        CudaForkError: this process was forked after CUDA was used.
    """
    return _headrace._cuda_device_count()


def devices() -> list[Device]:
    """The devices, by their numbers.

    Raises:
        CudaUnavailable: there is no CUDA here.
        CudaForkError: this process was forked after CUDA was used.
    """
    return [Device(**facts) for facts in _headrace._cuda_devices()]


def planned_pool_budget_bytes(streams: int, budget_mb: int | None = None) -> int:
    """How much device memory pools may take, in bytes.

    Args:
        streams: streams of all pools together.
        budget_mb: MiB for each stream; ``None`` for ``HEADRACE_POOL_MB_PER_STREAM``, or 256 without it.

    Raises:
        ValueError: the environment says something else than a whole number above 0.
    """
    return _headrace._cuda_planned_budget(streams, budget_mb)


def external_stream(stream: object, device: int = 0) -> Stream:
    """A stream that others have made and keep alive, as a :class:`Stream`. It is never lent.

    Args:
        stream: an object with ``__cuda_stream__``, as streams of CuPy and cuda.core are, or a handle.
        device: the number of its device.

    Raises:
        CudaUnavailable: there is no CUDA here.
        ValueError: there is no such device, or the object speaks another version of the protocol.
        TypeError: it is no stream.
    """
    return _headrace._cuda_external_stream(stream, device)


__all__ = [
    "is_available",
    "unavailable_reason",
    "device_count",
    "devices",
    "planned_pool_budget_bytes",
    "external_stream",
    "StreamPool",
    "Stream",
    "Event",
    "DeviceBuffer",
    "Device",
    "PoolStats",
]
