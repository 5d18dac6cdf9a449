"""Streams of CUDA through the real binding, on a stand-in for the driver, loaded in the driver's place: each
scenario in a process of its own, since a driver is loaded once.
"""

from __future__ import annotations

import pytest

from streams import hangs, needs_fake_driver, with_driver

pytestmark = needs_fake_driver

both_loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])

# Probing.

REASONS = {
    "no device": ({"INIT": 100}, "no device"),
    "no device counted": ({"DEVICES": 0}, "no device"),
    "the toolkit's stub": ({"INIT": 34}, "stub"),
    "versions that differ": ({"INIT": 803}, "do not match"),
    "an unknown error": ({"INIT": 999}, "CUDA_ERROR_UNKNOWN (999)"),
}

UNAVAILABLE = """
reason = cuda.unavailable_reason()
assert not cuda.is_available() and reason is not None
for call in (cuda.StreamPool, cuda.devices, lambda: cuda.external_stream(16)):
    error = raises(hr.CudaUnavailable, call)
    assert error.reason == reason and reason in str(error)
cuda.StreamPool(backend="sim")
print(reason)
"""


@pytest.mark.parametrize("case", REASONS)
def test_a_driver_that_cannot_be_used_says_why(case):
    faults, words = REASONS[case]
    assert words in with_driver(UNAVAILABLE, **faults)


@pytest.mark.parametrize("symbol", ["cuInit", "cuStreamCreateWithPriority", "cuEventQuery", "cuGetErrorName"])
def test_a_driver_without_a_function_is_too_old_and_nothing_panics(symbol):
    reason = with_driver(UNAVAILABLE, without=symbol)
    assert symbol in reason and "too old" in reason


@pytest.mark.parametrize("symbol", ["cuMemPoolCreate", "cuLaunchHostFunc"])
def test_a_driver_without_what_can_be_done_without_is_used_without(symbol):
    code = """
async def main():
    async with cuda.StreamPool(completion="hostfn") as pool, pool.lease() as stream:
        buffer = await stream.copy_to_device(b"x" * 100)
        stream.spin(1000)
        assert bytes(await stream.copy_to_host(buffer)) == b"x" * 100
        del buffer
run(main)
"""
    if symbol == "cuLaunchHostFunc":
        code = code.replace('"hostfn"', '"event"')
    with_driver(code, without=symbol)


def test_devices_are_counted_and_each_has_its_pools():
    with_driver(
        """
assert cuda.device_count() == 3
assert [device.ordinal for device in cuda.devices()] == [0, 1, 2]
assert cuda.devices()[0].memory_bytes == 64 << 20
raises(ValueError, lambda: cuda.StreamPool(device=3))
async def main():
    async with cuda.StreamPool(device=2) as pool, cuda.StreamPool(device=1) as other:
        async with pool.lease() as two, other.lease() as one:
            assert (pool.device.ordinal, two.device, one.device) == (2, 2, 1)
            buffer = await two.copy_to_device(b"two")
            assert buffer.device == 2 and buffer.__dlpack_device__() == (2, 2)
            raises(ValueError, lambda: one.wait_event(two.record_event()))
            error = await fails(ValueError, one.copy_to_host(buffer))
            assert "another device" in str(error)
            del buffer
run(main)
""",
        DEVICES=3,
        MEMORY_MB=64,
    )


# Leases and awaiting.


def test_a_stream_that_cannot_be_created_fails_one_lease():
    with_driver(
        """
async def main():
    async with cuda.StreamPool() as pool:
        held = [await pool.lease(), await pool.lease()]
        error = await fails(hr.ForkFailed, pool.lease())
        assert (error.code, error.name) == (2, "CUDA_ERROR_OUT_OF_MEMORY"), vars(error)
        held.append(await pool.lease())
        assert len({stream.handle for stream in held}) == 3 and all(stream.handle for stream in held)
        for stream in held:
            stream.release()
run(main)
""",
        FAIL="cuStreamCreate*:3:2",
    )


@pytest.mark.parametrize("completion", ["event", "poll", "hostfn"])
@both_loops
def test_awaits_end_when_the_work_does_and_not_before(loop, completion):
    with_driver(
        f"""
from kernels import Kernels
async def main():
    async with cuda.StreamPool(completion={completion!r}) as pool:
        kernels = Kernels()
        async with pool.lease() as one, pool.lease() as two:
            gate = kernels.gate(one)
            event = one.record_event()
            two.wait_event(event)
            waits = [asyncio.ensure_future(step(each)) for each in (one, event, two, two.record_event())]
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not any(wait.done() for wait in waits)
            gate.open()
            await asyncio.gather(*waits)
            assert event.query() and is_done(one)
        # Bursts: every await ends, whatever its neighbours do.
        async def worker(number):
            for turn in range(25):
                async with pool.lease() as stream:
                    stream.spin((number * 7 + turn) % 5 * 50)
                    event = stream.record_event()
                    await stream
                    assert event.query() and is_done(stream)
        await asyncio.gather(*(worker(number) for number in range(12)))
        stats = pool.stats()
        assert stats.leases == 302 and stats.errors == 0, stats
async def step(awaitable):
    await awaitable
def is_done(stream):
    # The function by which the driver calls back stands in the stream until it has returned.
    return pool_calls_back or stream.query()
pool_calls_back = {completion == "hostfn"}
run(main)
""",
        loop,
    )


CALLBACKS = """
from kernels import Kernels

class Callbacks:
    # Python that the driver calls all the time, as some libraries have it: it wants the interpreter, while
    # the driver's lock is held.

    def __init__(self, stream):
        self.kernels, self.handle, self.called = Kernels(), ctypes.c_void_p(int(stream)), 0
        self.function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.call)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.feed, daemon=True)
        self.thread.start()

    def call(self, _):
        self.called += 1

    def feed(self):
        self.kernels.here()
        while not self.stopped.is_set():
            fed = self.called
            self.kernels.check(self.kernels.driver.cuLaunchHostFunc(self.handle, self.function, None))
            while self.called == fed:
                time.sleep(0)
"""


@pytest.mark.parametrize("completion", ["event", "poll", "hostfn"])
def test_every_call_leaves_the_interpreter_to_callbacks_that_the_driver_waits_for(completion):
    with_driver(
        f"""
{CALLBACKS}
async def main():
    async with cuda.StreamPool(max_streams=3, completion={completion!r}, budget_mb=16) as pool:
        theirs = await pool.lease()
        callbacks = Callbacks(theirs)
        for turn in range(100):
            async with pool.lease() as stream:
                event = stream.record_event(timing=True)
                stream.wait_event(event)
                stream.spin(1)
                later = stream.record_event(timing=True)
                stream.query(), event.query(), stream.handle
                buffer = stream.allocate(1000)
                buffer.wait_on(stream)
                buffer.record_use(stream)
                buffer.__dlpack__(), buffer.__cuda_array_interface__
                small, large = stream.copy_to_device(b"x" * 1000), stream.copy_to_device(b"x" * 70_000)
                small, large = await small, await large
                out = bytearray(70_000)
                await stream.copy_to_host(large, out)
                await stream.copy_to_host(small)
                await event
                await later
                await stream
                event.elapsed(later)
                await asyncio.to_thread(stream.synchronize)
                del event, later, buffer, small, large
            try:
                with pool.try_lease() as stream:
                    stream.spin(1)
            except hr.Capacity:
                pass  # What was lent before may stand behind the callbacks still.
            pool.resolve(0).query(), pool.stats(), cuda.devices()
            if turn % 10 == 0:
                cuda.external_stream(theirs).query()
        callbacks.stopped.set()
        await asyncio.to_thread(callbacks.thread.join)
        assert callbacks.called > 20, callbacks.called
        theirs.release()
    assert pool.stats().errors == 0
run(main)
"""
    )


def test_the_scene_of_that_test_is_one_in_which_a_call_that_keeps_the_interpreter_hangs():
    """It calls the driver in the way of a binding that does not let go."""
    code = f"""
{CALLBACKS}
async def main():
    pool = cuda.StreamPool()
    theirs, ours = await pool.lease(), await pool.lease()
    callbacks = Callbacks(theirs)
    keeps = ctypes.PyDLL("libcuda.so.1")
    handle = ctypes.c_void_p(int(ours))
    callbacks.kernels.here()
    print("begins", flush=True)
    for _ in range(1_000_000):
        keeps.cuStreamQuery(handle)
    print("ends", flush=True)
run(main)
"""
    assert hangs(code) == "begins"


def test_threads_and_tasks_share_a_pool_whose_end_of_work_is_called_back():
    with_driver(
        """
sys.setswitchinterval(1e-5)
async def main():
    async with cuda.StreamPool(max_streams=8, completion="hostfn") as pool:
        stop = threading.Event()
        def calls():
            with pool.lease_blocking() as stream:
                while not stop.is_set():
                    stream.query()
                    stream.record_event().query()
                    len([object() for _ in range(100)])
        threads = [threading.Thread(target=calls) for _ in range(2)]
        for thread in threads:
            thread.start()
        async def worker():
            for _ in range(60):
                async with pool.lease() as stream:
                    stream.spin(20)
                    buffer = await stream.copy_to_device(b"x" * 70_000)
                    await stream
                    del buffer
        await asyncio.gather(*(worker() for _ in range(6)))
        stop.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
run(main)
"""
    )


# Copies and memory.


@both_loops
def test_copies_through_the_driver_are_byte_exact(loop):
    with_driver(
        """
import numpy as np
async def main():
    async with cuda.StreamPool() as pool, pool.lease() as stream, pool.lease() as other:
        for size in (1, 5000, 65_536, 65_537, 1_000_003):
            data = np.random.default_rng(size).bytes(size)
            for source in (data, bytearray(data), memoryview(data), np.frombuffer(data, "u1")):
                buffer = await stream.copy_to_device(source)
                assert ctypes.string_at(buffer.address, size) == data
                assert bytes(await other.copy_to_host(buffer)) == data
                out = bytearray(size)
                assert await other.copy_to_host(buffer, out) is out and out == data
                del buffer
        array = np.arange(6000, dtype="f8").reshape(3, 2000)
        buffer = await stream.copy_to_device(array)
        assert np.array_equal(np.asarray(await stream.copy_to_host(buffer)), array)
        del buffer
    assert pool.stats().errors == 0
run(main)
""",
        loop,
    )


@both_loops
def test_copies_that_are_cancelled_never_lend_their_memory_early(loop):
    """The stand-in breaks the device if memory is freed under a copy, and copies what is there when it
    runs.
    """
    with_driver(
        """
from kernels import Kernels
async def main():
    async with cuda.StreamPool() as pool, pool.lease() as stream, pool.lease() as other:
        kernels = Kernels()
        kept = await other.copy_to_device(b"k" * 100_000)
        for size in (1000, 100_000):
            gate = kernels.gate(stream)
            copies = [stream.copy_to_device(bytes([n]) * size) for n in range(8)]
            copies.append(stream.copy_to_host(kept, bytearray(100_000)))
            pending = [asyncio.ensure_future(step(copy)) for copy in copies]
            del copies
            for _ in range(5):
                await asyncio.sleep(0.001)
            for copy in pending:
                copy.cancel()
            await asyncio.wait(pending)
            del pending, copy
            gc.collect()
            # Neighbours use pinned and device memory meanwhile.
            for n in range(8):
                data = bytes([100 + n]) * size
                buffer = await other.copy_to_device(data)
                assert bytes(await other.copy_to_host(buffer)) == data
                del buffer
            gate.open()
            await stream
        assert bytes(await stream.copy_to_host(kept)) == b"k" * 100_000
        del kept
        assert pool.healthy and pool.stats().errors == 0
    await eventually(lambda: pool.stats().device_bytes == 0)
async def step(awaitable):
    await awaitable
run(main)
""",
        loop,
    )


@pytest.mark.parametrize("pools", [0, 1])
def test_budget_and_memory_end_with_errors_that_harm_nobody_else(pools):
    with_driver(
        """
async def main():
    async with cuda.StreamPool(budget_mb=2) as pool, pool.lease() as stream, pool.lease() as other:
        first = stream.allocate(1_500_000)
        error = raises(hr.OutOfBudget, lambda: stream.allocate(1_000_000))
        assert (error.requested, error.current, error.limit) == (1_000_000, 1_500_000, 2 << 20)
        del first
        await eventually(lambda: pool.stats().device_bytes == 0)
        first, second = stream.allocate(2 << 20), other.allocate(1_000_000)
        # The device has three MiB.
        error = raises(hr.CudaError, lambda: other.allocate(1_090_000))
        assert error.code == 2 and pool.healthy, vars(error)
        assert bytes(await other.copy_to_host(await other.copy_to_device(b"fits"))) == b"fits"
        del first, second
    await eventually(lambda: pool.stats().device_bytes == 0)
run(main)
""",
        POOLS=pools,
        MEMORY_MB=3,
    )


# Other libraries; how they take over buffers is in test_cuda_sharing.


def test_streams_of_others_are_awaited_and_ours_are_taken():
    with_driver(
        """
from kernels import Kernels
class Theirs:
    def __init__(self, handle): self.handle = handle
    def __cuda_stream__(self): return (0, self.handle)
async def main():
    async with cuda.StreamPool() as pool, pool.lease() as stream:
        kernels = Kernels()
        handle = ctypes.c_void_p()
        kernels.check(kernels.driver.cuStreamCreate(ctypes.byref(handle), 1))
        theirs = cuda.external_stream(Theirs(handle.value))
        assert (theirs.handle, theirs.kind, theirs.id) == (handle.value, "external", 0)
        gate = kernels.gate(theirs)
        event = pool.wrap(handle.value).record_event()
        waiting = asyncio.ensure_future(step(theirs))
        stream.wait_event(event)
        await asyncio.sleep(0.01)
        assert not waiting.done() and not stream.query()
        gate.open()
        await asyncio.gather(waiting, step(event), step(stream))
        for method, package in ((stream.torch, "torch"), (stream.cupy, "cupy")):
            if package not in sys.modules:
                sys.modules[package] = None
            assert raises(ImportError, method).name == package
        default = pool.resolve(0)
        default.spin(100)
        await default
        assert int(default) == 0
async def step(awaitable):
    await awaitable
run(main)
"""
    )
