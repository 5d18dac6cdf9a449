"""What fails through the real binding, on a stand-in for the driver: errors that stay, forks, and ends of
programs. Each scenario has a process of its own.
"""

from __future__ import annotations

import pytest

from streams import needs_fake_driver, with_driver

pytestmark = needs_fake_driver

both_loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@pytest.mark.parametrize("completion", ["event", "poll", "hostfn"])
@both_loops
def test_a_sticky_error_fails_every_awaiter_within_a_second(loop, completion):
    with_driver(
        f"""
from kernels import Kernels
async def main():
    pool = cuda.StreamPool(max_streams=3, completion={completion!r})
    kernels = Kernels()
    one, two, failing = [await pool.lease() for _ in range(3)]
    buffer = await two.copy_to_device(b"x" * 1000)
    gate = kernels.gate(one)
    event = one.record_event()
    two.wait_event(event)
    lost = asyncio.ensure_future(step(pool.wait_lost()))
    waits = [one, event, two, two.record_event(), one.copy_to_device(b"y" * 1000), pool.lease(),
             one.copy_to_device(b"y" * 100_000), two.copy_to_host(buffer),
             two.copy_to_host(buffer, bytearray(1000))]
    tasks = [asyncio.ensure_future(step(each)) for each in waits]
    threads = [asyncio.ensure_future(asyncio.to_thread(one.synchronize))]
    await eventually(lambda: pool.stats().waiting == 1)
    await asyncio.sleep(0.01)
    began = time.monotonic()
    kernels.trap(failing)
    ended = await asyncio.wait_for(asyncio.gather(*tasks, *threads, return_exceptions=True), 10)
    took = time.monotonic() - began
    assert all(type(each) is hr.ContextPoisoned for each in ended), ended
    assert took < 1, took
    assert isinstance(await asyncio.wait_for(lost, 1), hr.ContextPoisoned)
    assert (ended[0].code, ended[0].name) == (719, "CUDA_ERROR_LAUNCH_FAILED")
    assert not pool.healthy and pool.stats().poisoned
    await fails(hr.ContextPoisoned, pool.lease())
    raises(hr.ContextPoisoned, pool.try_lease)
    raises(hr.ContextPoisoned, one.record_event)
    # Letting go of everything is quiet.
    for stream in (one, two, failing):
        stream.release()
    del buffer, event, waits, tasks, stream, one, two, failing
    gc.collect()
    await fails(hr.ContextPoisoned, pool.close(1))
async def step(awaitable):
    return await awaitable
run(main)
""",
        loop,
    )


@pytest.mark.parametrize("nth", [1, 2, 3, 5, 8])
def test_wherever_the_device_breaks_everybody_is_told(nth):
    with_driver(
        """
async def use(pool):
    async with pool.lease() as stream:
        buffer = await stream.copy_to_device(b"x" * 1000)
        stream.spin(10)
        await stream
        await stream.copy_to_host(buffer)
async def main():
    pool = cuda.StreamPool(max_streams=2)
    tasks = [asyncio.ensure_future(use(pool)) for _ in range(6)]
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    failed = [each for each in ended if each is not None]
    assert failed and all(type(each) is hr.ContextPoisoned and each.code == 700 for each in failed), ended
run(main)
""",
        STICKY=f"{nth}:700",
    )


def test_errors_that_are_not_sticky_fail_their_call_alone():
    with_driver(
        """
async def main():
    async with cuda.StreamPool() as pool, pool.lease() as stream:
        error = await fails(hr.CudaError, stream.copy_to_device(b"x"))
        assert type(error) is hr.CudaError, error
        assert (error.code, error.operation) == (1, "cuMemcpyHtoDAsync"), vars(error)
        error = raises(hr.CudaError, stream.record_event)
        assert type(error) is hr.CudaError and error.code == 400, vars(error)
        assert pool.healthy
        assert bytes(await stream.copy_to_host(await stream.copy_to_device(b"y"))) == b"y"
run(main)
""",
        FAIL="cuMemcpyHtoDAsync_v2:1:1,cuEventRecord:2:400",
    )


def test_a_forked_child_is_refused_everywhere_and_harms_nobody():
    with_driver(
        """
async def main():
    pool = cuda.StreamPool()
    stream = await pool.lease()
    buffer = await stream.copy_to_device(b"x")
    child = os.fork()
    if child == 0:
        try:
            for use in (cuda.StreamPool, cuda.device_count, cuda.devices, pool.try_lease, stream.query,
                        stream.record_event, lambda: buffer.address, lambda: cuda.external_stream(16),
                        pool.stats, pool.wait_lost, pool.close, lambda: repr(pool)):
                raises(hr.CudaForkError, use)
            assert not cuda.is_available() and "fork" in cuda.unavailable_reason()
            stream.release()
            del stream, buffer, pool
            gc.collect()
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    assert bytes(await stream.copy_to_host(buffer)) == b"x"
    del buffer
    stream.release()
    await pool.close()
run(main)
"""
    )


ENDS = {
    "leases are held": """
async def main():
    global kept
    pool = cuda.StreamPool()
    kept = pool, await pool.lease(), await pool.lease()
run(main)
""",
    "work runs and nobody waits for it": """
async def main():
    global kept
    pool = cuda.StreamPool()
    stream = await pool.lease()
    kept = pool, stream, Kernels().gate(stream), await (await pool.lease()).copy_to_device(b"x")
    kept[1].record_event()
run(main)
""",
    "tasks wait for work that never ends": """
async def main():
    global kept
    pool = cuda.StreamPool(max_streams=1)
    stream = await pool.lease()
    kept = [pool, stream, Kernels().gate(stream)]
    for each in (stream, stream.record_event(), pool.lease(), stream.copy_to_device(b"x" * 100_000)):
        kept.append(asyncio.ensure_future(step(each)))
    await asyncio.sleep(0.01)
run(main)
""",
    "a thread waits for work that never ends": """
async def main():
    global kept
    pool = cuda.StreamPool(completion="poll")
    stream = await pool.lease()
    kept = pool, stream, Kernels().gate(stream)
    threading.Thread(target=stream.synchronize, daemon=True).start()
    await asyncio.sleep(0.01)
run(main)
""",
    "the driver is to call back": """
async def main():
    global kept
    pool = cuda.StreamPool(completion="hostfn")
    stream = await pool.lease()
    kept = pool, stream, Kernels().gate(stream), asyncio.ensure_future(step(stream))
    await asyncio.sleep(0.01)
run(main)
""",
    "everything is dropped in a cycle": """
async def main():
    class Cycle: pass
    cycle = Cycle()
    pool = cuda.StreamPool()
    stream = await pool.lease()
    cycle.self, cycle.kept = cycle, (pool, stream, await stream.copy_to_device(b"x"), stream.record_event())
    gc.disable()
run(main)
""",
    "one loop after the other": """
async def main():
    async with pool.lease() as stream:
        stream.spin(100)
        await stream
        return bytes(await stream.copy_to_host(await stream.copy_to_device(b"x" * 100_000)))
pool = cuda.StreamPool()
for _ in range(4):
    assert run(main) == b"x" * 100_000
""",
}


@pytest.mark.parametrize("case", ENDS)
@both_loops
def test_a_program_ends_promptly_and_without_a_word(loop, case):
    prelude = """
from kernels import Kernels
async def step(awaitable):
    return await awaitable
"""
    with_driver(prelude + ENDS[case], loop)
