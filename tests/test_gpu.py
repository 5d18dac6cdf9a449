"""What only a GPU can show. Skipped without one; with ``HEADRACE_REQUIRE_CUDA=1`` that is a failure.
``make gpu`` runs them.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from collections.abc import Iterator
from typing import Any

import headrace as hr
import numpy as np
import pytest
from headrace import cuda

from support import GUARD, WORKERS, eventually, run_script

pytestmark = pytest.mark.gpu

REQUIRED = os.environ.get("HEADRACE_REQUIRE_CUDA") == "1"


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    reason = cuda.unavailable_reason()
    if reason is not None:
        if REQUIRED:
            pytest.fail(f"HEADRACE_REQUIRE_CUDA=1, and there is no CUDA: {reason}")
        pytest.skip(reason)
    yield


def library(name: str) -> Any:
    """A package that uses the GPU itself. These tests are about it, so they are left out without it, with a
    line that says so.
    """
    try:
        package = importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")
    if not package.cuda.is_available():
        pytest.skip(f"{name} is one without CUDA")
    return package


def kernels() -> Any:
    from workers.kernels import Kernels

    return Kernels()


MODES = pytest.mark.parametrize("completion", ["event", "poll", "hostfn"])


def test_the_devices_are_known():
    devices = cuda.devices()
    assert len(devices) == cuda.device_count() >= 1
    for device in devices:
        print(device)
        assert device.memory_bytes > 1 << 20 and device.compute_capability >= (5, 0)


@pytest.mark.asyncio
@MODES
async def test_an_await_ends_when_the_kernel_does(completion):
    async with cuda.StreamPool(completion=completion) as pool, pool.lease() as stream:
        await stream
        before = stream.record_event(timing=True)
        stream.spin(50_000)
        after = stream.record_event(timing=True)
        assert not after.query()
        ticks = 0
        waiting = asyncio.ensure_future(after)
        while not waiting.done():
            await asyncio.sleep(0.001)
            ticks += 1
        assert ticks > 5 and after.query() and before.elapsed(after) >= 0.049


@pytest.mark.asyncio
@MODES
async def test_streams_wait_for_each_other_and_for_the_host(completion):
    async with cuda.StreamPool(completion=completion) as pool, pool.lease() as one, pool.lease() as two:
        gate = kernels().gate(one)
        two.wait_event(one.record_event())
        waiting = asyncio.ensure_future(two)
        await asyncio.sleep(0.02)
        assert not waiting.done() and not one.query()
        gate.open()
        await asyncio.wait_for(waiting, GUARD)


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [1, 65_536, 65_537, 64 << 20])
async def test_copies_are_byte_exact(size):
    data = np.random.default_rng(size).bytes(size)
    async with cuda.StreamPool() as pool, pool.lease() as stream, pool.lease() as other:
        for source in (data, bytearray(data), np.frombuffer(data, "u1")):
            buffer = await stream.copy_to_device(source)
            assert bytes(await other.copy_to_host(buffer)) == data
            out = bytearray(size)
            assert await stream.copy_to_host(buffer, out) is out and out == data
            del buffer


@pytest.mark.asyncio
async def test_kernels_of_four_streams_overlap():
    async with cuda.StreamPool(max_streams=4) as pool:

        async def use() -> None:
            async with pool.lease() as stream:
                stream.spin(50_000)
                await stream

        await asyncio.gather(*(use() for _ in range(4)))
        began = time.perf_counter()
        await asyncio.gather(*(use() for _ in range(8)))
        # One after the other they take 0.4 s.
        assert time.perf_counter() - began < 0.3


@pytest.mark.asyncio
async def test_the_budget_holds_and_memory_comes_back():
    async with cuda.StreamPool(budget_mb=8) as pool, pool.lease() as stream:
        for _ in range(20):
            buffer = stream.allocate(6 << 20)
            with pytest.raises(hr.OutOfBudget):
                stream.allocate(4 << 20)
            del buffer
            await eventually(lambda: pool.stats().device_bytes == 0)


@pytest.mark.asyncio
async def test_priorities_are_what_the_device_has():
    async with cuda.StreamPool(priority="high") as high, cuda.StreamPool() as normal:
        async with high.lease() as urgent, normal.lease() as stream:
            assert urgent.priority <= stream.priority


@pytest.mark.asyncio
async def test_a_batcher_answers_when_its_streams_have_drained():
    async def model(batch: Any) -> Any:
        batch.stream.spin(5000)
        return [batch.stream.record_event() for _ in batch]

    async with cuda.StreamPool() as pool, hr.Batcher(model, streams=pool, max_batch_size=1) as batcher:
        events = await batcher.map(range(16))
        assert all(event.query() for event in events)


@pytest.mark.asyncio
async def test_pytorch_takes_streams_and_buffers():
    torch = library("torch")
    array = np.arange(1 << 20, dtype="f4").reshape(1024, 1024)
    async with cuda.StreamPool() as pool, pool.lease() as stream:
        buffer = await stream.copy_to_device(array)
        with torch.cuda.stream(stream.torch()):
            assert torch.cuda.current_stream().cuda_stream == stream.handle
            tensor = torch.from_dlpack(buffer)
            assert (tuple(tensor.shape), tensor.dtype) == (array.shape, torch.float32)
            doubled = tensor * 2
        await stream
        assert np.array_equal(doubled.cpu().numpy(), array * 2)
        theirs = torch.cuda.Stream()
        with torch.cuda.stream(theirs):
            again = torch.from_dlpack(buffer) + 1
        await pool.wrap(theirs.cuda_stream)
        assert np.array_equal(again.cpu().numpy(), array + 1)
        del tensor, buffer, again, doubled
    await eventually(lambda: pool.stats().device_bytes == 0)


@pytest.mark.asyncio
async def test_cupy_takes_streams_and_buffers():
    cupy = library("cupy")
    array = np.arange(1 << 20, dtype="f4")
    async with cuda.StreamPool() as pool, pool.lease() as stream:
        buffer = await stream.copy_to_device(array)
        with stream.cupy():
            assert np.array_equal(cupy.asnumpy(cupy.asarray(buffer) * 2), array * 2)
            assert np.array_equal(cupy.asnumpy(cupy.from_dlpack(buffer)), array)
        del buffer


@MODES
def test_a_sticky_error_fails_every_await_within_a_second(completion):
    code = f"""
import asyncio, sys, time
sys.path.insert(0, {str(WORKERS)!r})
import headrace as hr
from headrace import cuda
from kernels import Kernels
async def step(awaitable):
    await awaitable
async def main():
    pool = cuda.StreamPool(max_streams=2, completion={completion!r})
    one, two = await pool.lease(), await pool.lease()
    kernels = Kernels()
    one.spin(300_000)
    tasks = [asyncio.ensure_future(step(each)) for each in (one, one.record_event(), pool.lease())]
    await asyncio.sleep(0.01)
    began = time.monotonic()
    kernels.trap(two)
    tasks.append(asyncio.ensure_future(step(two)))
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert all(type(each) is hr.ContextPoisoned for each in ended), ended
    assert time.monotonic() - began < 1 and not pool.healthy
asyncio.run(main())
"""
    assert run_script(code, guard=60) == (0, "", "")


def test_a_forked_child_is_refused():
    code = """
import asyncio, os
import headrace as hr
from headrace import cuda
async def main():
    pool = cuda.StreamPool()
    stream = await pool.lease()
    child = os.fork()
    if child == 0:
        try:
            stream.query()
        except hr.CudaForkError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    await stream
asyncio.run(main())
"""
    assert run_script(code, guard=60) == (0, "", "")
