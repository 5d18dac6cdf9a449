"""What is measured on a GPU, one function for each figure. Each compares its sides in turns, in one run, and
gives medians over rounds with their ranges; ratios are of medians.

The work is a kernel that takes a known time and copies of known sizes, so that nothing but a driver is
needed. What needs PyTorch is left out without it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import headrace as hr
from headrace import cuda

from driver import Driver

ITEM_MS = 2.0
"""What copy-in, kernel and copy-out of an item each take, as far as sizes allow."""

ITEM_BYTES_MAX = 64 << 20

STAGING_US = 50_000
"""Longer than it takes to bring the bytes of an item to pinned memory."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is done: fewer items and rounds prove that it runs."""

    rounds: int
    items: int
    waits: int
    blocked_seconds: float
    leases: int


FULL = Plan(rounds=5, items=32, waits=200, blocked_seconds=2.0, leases=20_000)
SHORT = Plan(rounds=2, items=8, waits=20, blocked_seconds=0.2, leases=500)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: a name, what was measured, in words with units, and what it is to be."""

    name: str
    value: str
    goal: str = ""


def spread(values: list[float], scale: float = 1.0, digits: int = 1) -> str:
    """Median and range."""
    low, high = min(values) * scale, max(values) * scale
    return f"{statistics.median(values) * scale:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Seconds that it takes, without the collector."""
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        await work()
        return time.perf_counter() - began
    finally:
        gc.enable()


# Overlap.


@dataclasses.dataclass(frozen=True)
class Stages:
    """An item of the pipeline: its bytes, and the seconds of each of its stages on the device."""

    nbytes: int
    copy_in: float
    kernel: float
    copy_out: float

    @property
    def kernel_us(self) -> int:
        return int(self.kernel * 1e6)

    def ideal(self, items: int) -> float:
        """Seconds for all items if the longest stage never paused."""
        stages = (self.copy_in, self.kernel, self.copy_out)
        return sum(stages) + (items - 1) * max(stages)


async def stages(pool: cuda.StreamPool, rounds: int) -> Stages:
    """Chooses a size whose copies take as long as the kernel; the stages by the device's clock."""

    async def copies(nbytes: int) -> tuple[float, float]:
        source, out = bytes(nbytes), bytearray(nbytes)
        ins: list[float] = []
        outs: list[float] = []
        async with pool.lease() as stream:
            buffer = await stream.copy_to_device(source)
            for _ in range(rounds + 1):
                buffer, took = await _on_device(pool, stream, lambda: stream.copy_to_device(source))
                ins.append(took)
                _, took = await _on_device(pool, stream, lambda made=buffer: stream.copy_to_host(made, out))
                outs.append(took)
        return min(ins), min(outs)

    probe = 8 << 20
    rate = probe / max(await copies(probe))
    nbytes = max(1 << 20, min(ITEM_BYTES_MAX, int(rate * ITEM_MS / 1e3) >> 20 << 20))
    copy_in, copy_out = await copies(nbytes)
    return Stages(nbytes, copy_in, ITEM_MS / 1e3, copy_out)


async def _on_device(
    pool: cuda.StreamPool, stream: cuda.Stream, begin: Callable[[], Awaitable[Any]]
) -> tuple[Any, float]:
    """What a copy gives, and how long the device had it: the time between two events around it. A kernel runs
    before them until the copy is in the stream, so that what the host does first does not count; where that
    takes longer, the copy counts as longer too, hence the shortest of several.
    """

    def copied() -> int:
        stats = pool.stats()
        return stats.bytes_to_device + stats.bytes_to_host

    def until_more_than(known: int) -> None:
        while copied() == known:
            time.sleep(1e-4)

    known = copied()
    stream.spin(STAGING_US)
    before = stream.record_event(timing=True)
    copy = begin()
    until_more_than(known)
    after = stream.record_event(timing=True)
    made = await copy
    await after
    return made, before.elapsed(after)


async def overlap(device: int, plan: Plan) -> list[Row]:
    """Copy-in, kernel and copy-out of many items on one stream and on four."""
    driver = Driver(device)
    async with cuda.StreamPool(device, 1) as one, cuda.StreamPool(device, 4, budget_mb=1024) as four:
        item = await stages(four, plan.rounds)
        sources = [bytes([number]) * item.nbytes for number in range(4)]

        def pipeline(pool: cuda.StreamPool) -> Callable[[], Awaitable[object]]:
            async def handle(number: int) -> None:
                async with pool.lease() as stream:
                    there = await stream.copy_to_device(sources[number % 4])
                    driver.spin(stream.handle, item.kernel_us)
                    await stream.copy_to_host(there)

            return lambda: asyncio.gather(*(handle(number) for number in range(plan.items)))

        times: dict[str, list[float]] = {"one": [], "four": [], "torch": []}
        by_hand = torch_pipeline(driver, device, item, sources, plan.items)
        for turn in range(plan.rounds + 1):
            taken = {"one": await timed(pipeline(one)), "four": await timed(pipeline(four))}
            if by_hand is not None:
                taken["torch"] = await timed(by_hand)
            for side, seconds in taken.items():
                # The first round allocates and pins.
                if turn:
                    times[side].append(seconds)
    serial, parallel = statistics.median(times["one"]), statistics.median(times["four"])
    ideal = item.ideal(plan.items)
    efficiency = (serial - parallel) / (serial - ideal) if serial > ideal else float("nan")
    rows = [
        Row("item", f"{item.nbytes >> 20} MiB in and out, kernel {item.kernel * 1e3:.1f} ms"),
        Row("stages", f"in {item.copy_in * 1e3:.2f} ms, out {item.copy_out * 1e3:.2f} ms on the device"),
        Row(f"{plan.items} items on 1 stream, ms", spread(times["one"], 1e3)),
        Row(f"{plan.items} items on 4 streams, ms", spread(times["four"], 1e3)),
        Row("ideal, ms", f"{ideal * 1e3:.1f}"),
        Row("overlap efficiency", f"{efficiency:.2f}", "at least 0.85"),
        Row("4 streams to 1", f"{serial / parallel:.2f} x", "at least 2.4 x"),
    ]
    if not times["torch"]:
        return [
            *rows,
            Row("the same by hand with PyTorch", "left out: no PyTorch with CUDA", "at most 1.03 x"),
        ]
    ratio = parallel / statistics.median(times["torch"])
    rows.append(Row("the same by hand with PyTorch, ms", spread(times["torch"], 1e3)))
    return [*rows, Row("to PyTorch by hand", f"{ratio:.3f} x", "at most 1.03 x")]


def torch_pipeline(
    driver: Driver, device: int, item: Stages, sources: list[bytes], items: int
) -> Callable[[], Awaitable[object]] | None:
    """The same with PyTorch's streams and events, pinned tensors made beforehand. ``None`` without PyTorch,
    or with one that has no CUDA.
    """
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    slots: list[tuple[Any, ...]] = []
    for _ in range(4):
        stream = torch.cuda.Stream(device)
        pinned = [torch.empty(item.nbytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        there = torch.empty(item.nbytes, dtype=torch.uint8, device=f"cuda:{device}")
        slots.append((stream, torch.cuda.Event(), *pinned, there))
    tensors = [torch.frombuffer(bytearray(source), dtype=torch.uint8) for source in sources]

    async def run() -> None:
        for number in range(items):
            stream, done, pinned_in, pinned_out, there = slots[number % 4]
            done.synchronize()
            pinned_in.copy_(tensors[number % 4])
            with torch.cuda.stream(stream):
                there.copy_(pinned_in, non_blocking=True)
                driver.spin(stream.cuda_stream, item.kernel_us)
                pinned_out.copy_(there, non_blocking=True)
                done.record(stream)
        for slot in slots:
            slot[1].synchronize()

    return run


# Latency, and what waiting costs.


async def latency(device: int, plan: Plan) -> list[Row]:
    """From the end of a kernel to the line after its await, beside a wait that spins and one in a thread."""
    driver = Driver(device)
    rows: list[Row] = []
    async with cuda.StreamPool(device, 1) as pool, pool.lease() as stream:
        handle = stream.handle

        async def ours() -> None:
            await stream

        async def spinning() -> None:
            driver.synchronize(handle)

        async def thread() -> None:
            await asyncio.to_thread(driver.synchronize, handle)

        for kernel_us in (100, 1000, 10_000):
            count = max(5, min(plan.waits, 2_000_000 // kernel_us // 5))
            taken: dict[str, list[float]] = {"ours": [], "spinning": [], "thread": []}
            for _ in range(count):
                for name, wait in (("ours", ours), ("spinning", spinning), ("thread", thread)):
                    began = time.perf_counter()
                    stream.spin(kernel_us)
                    await wait()
                    taken[name].append(time.perf_counter() - began - kernel_us / 1e6)
            p50 = {name: statistics.median(values) * 1e6 for name, values in taken.items()}
            p99 = quantile(taken["ours"], 0.99) * 1e6
            words = ", ".join(f"{name} {value:.0f}" for name, value in p50.items())
            rows.append(Row(f"kernel of {kernel_us} us: launch and wait beyond it, p50 us", words))
            added = p50["ours"] - p50["spinning"]
            rows.append(Row("  await above the spinning wait, p50 us", f"{added:.0f}", "at most 30"))
            rows.append(Row("  await, p99 us", f"{p99:.0f}"))
            part = p50["ours"] / p50["thread"]
            rows.append(Row("  await to to_thread(synchronize)", f"{part:.2f} x", "at most 0.6 x"))
    return rows


DEFAULT = ("event", 20)
"""The mode and the microseconds of spinning that a pool has if nothing is said."""


async def waiting(device: int, plan: Plan) -> list[Row]:
    """What waiting costs, by mode and spin: latency of short work, CPU while eight streams are waited for."""
    rows: list[Row] = []
    modes: list[tuple[Any, float]] = [("event", us) for us in (0, 20, 50, 100, 1000)]
    for mode, spin_us in [*modes, ("poll", 20), ("hostfn", 0)]:
        async with cuda.StreamPool(device, 8, completion=mode, spin_us=spin_us) as pool:
            streams = [await pool.lease() for _ in range(8)]
            taken: list[float] = []
            for _ in range(plan.waits):
                began = time.perf_counter()
                streams[0].spin(100)
                await streams[0]
                taken.append(time.perf_counter() - began - 1e-4)
            blocked_us = int(plan.blocked_seconds * 1e6)
            blocked = await _cpu(streams, lambda us=blocked_us: us, 1)
            busy = await _cpu(streams, lambda: 1000, max(1, int(plan.blocked_seconds * 250)))
            for stream in streams:
                stream.release()
        name = f"{mode}, {spin_us:.0f} us"
        marked = f"{name} (default)" if (mode, spin_us) == DEFAULT else name
        value = (
            f"p50 {statistics.median(taken) * 1e6:.0f} us, p99 {quantile(taken, 0.99) * 1e6:.0f} us; "
            f"CPU {blocked:.1f} % of a core blocked, {busy:.0f} % with works of 1 ms"
        )
        rows.append(Row(marked, value, "blocked: at most 2 %" if mode == "event" else ""))
    return rows


async def _cpu(streams: list[cuda.Stream], microseconds: Callable[[], int], turns: int) -> float:
    """CPU of this process while each stream works so often, in percent of a core."""

    async def use(stream: cuda.Stream) -> None:
        for _ in range(turns):
            stream.spin(microseconds())
            await stream

    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(use(stream) for stream in streams))
    return (time.process_time() - used) / (time.perf_counter() - began) * 100


async def jitter(device: int, plan: Plan) -> list[Row]:
    """How late the loop's timers are, idle and while eight streams are awaited all the time."""

    async def ticks() -> list[float]:
        late: list[float] = []
        until = time.perf_counter() + plan.blocked_seconds
        while time.perf_counter() < until:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - began - 0.001)
        return late

    idle, busy = [], []
    async with cuda.StreamPool(device, 8) as pool:

        async def work() -> None:
            while True:
                async with pool.lease() as stream:
                    stream.spin(8000)
                    await stream

        for _ in range(plan.rounds):
            idle.append(quantile(await ticks(), 0.99))
            tasks = [asyncio.ensure_future(work()) for _ in range(8)]
            busy.append(quantile(await ticks(), 0.99))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    ratio = statistics.median(busy) / statistics.median(idle)
    return [
        Row("timers late, idle, p99 us", spread(idle, 1e6, 0)),
        Row("with 8 streams awaited, about 1,000 awaits a second, p99 us", spread(busy, 1e6, 0)),
        Row("to idle", f"{ratio:.2f} x", "at most 2 x"),
    ]


async def leases(device: int, plan: Plan) -> list[Row]:
    """What lending costs when a stream is free."""
    times: list[float] = []
    async with cuda.StreamPool(device, 4) as pool:
        for turn in range(plan.rounds + 1):

            async def lend() -> None:
                for _ in range(plan.leases):
                    async with pool.lease():
                        pass

            seconds = await timed(lend)
            if turn:
                times.append(seconds / plan.leases)
    return [Row("async with pool.lease(), us", spread(times, 1e6, 2), "at most 1.5")]


async def batches(device: int, plan: Plan) -> list[Row]:
    """A batcher whose function copies, computes and copies back, with one stream and with four."""
    driver = Driver(device)
    rows: list[Row] = []
    async with cuda.StreamPool(device, 1) as one, cuda.StreamPool(device, 4, budget_mb=1024) as four:
        item = await stages(four, plan.rounds)
        copies = item.copy_in + item.copy_out
        for part in (0.3, 0.05):
            kernel_us = int(copies * (1 - part) / part * 1e6)
            payload = bytes(item.nbytes)
            items = max(4, min(plan.items * 4, int(4e6 / kernel_us)))
            times: dict[int, list[float]] = {1: [], 4: []}

            async def model(batch: Any, us: int = kernel_us, data: bytes = payload) -> Any:
                there = await batch.stream.copy_to_device(data)
                driver.spin(batch.stream.handle, us)
                await batch.stream.copy_to_host(there)
                return list(batch)

            for turn in range(plan.rounds + 1):
                for count, pool in ((1, one), (4, four)):
                    async with hr.Batcher(model, streams=pool, max_batch_size=1, timeout=None) as batcher:
                        seconds = await timed(lambda b=batcher, n=items: b.map(range(n)))
                    if turn:
                        times[count].append(seconds / items)
            ratio = statistics.median(times[1]) / statistics.median(times[4])
            name = f"copies are {part * 100:.0f} % of a batch: ms a batch, 1 stream and 4"
            rows.append(Row(name, f"{spread(times[1], 1e3, 2)}; {spread(times[4], 1e3, 2)}"))
            goal = "at least 1.3 x" if part == 0.3 else "at least 1.0 x"
            rows.append(Row("  4 streams to 1", f"{ratio:.2f} x", goal))
    return rows


MEASURES: list[tuple[str, Callable[[int, Plan], Awaitable[list[Row]]]]] = [
    ("Overlap", overlap),
    ("Latency of an await", latency),
    ("What waiting costs", waiting),
    ("The loop's jitter", jitter),
    ("Lending", leases),
    ("Batches on streams", batches),
]
