"""Streams of CUDA on a simulated device, and machines without any: leases, awaiting, failures."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import sys
import threading

import headrace as hr
import pytest
from headrace import cuda

from streams import pooled, stopped
from support import GUARD, eventually, run_script

no_driver = pytest.mark.skipif(cuda.is_available(), reason="there is a driver here")


# Without CUDA.


@no_driver
def test_without_a_driver_everything_says_why():
    reason = cuda.unavailable_reason()
    assert reason is not None and "libcuda" in reason
    assert not cuda.is_available()
    for call in (
        cuda.StreamPool,
        cuda.device_count,
        cuda.devices,
        lambda: cuda.external_stream(1),
    ):
        with pytest.raises(hr.CudaUnavailable) as refused:
            call()
        assert refused.value.reason == reason
        assert reason in str(refused.value)


def test_nothing_is_loaded_before_it_is_asked_for():
    code = """
import headrace, headrace.cuda
pool = headrace.cuda.StreamPool(backend="sim")
assert not any("libcuda" in line for line in open("/proc/self/maps"))
"""
    assert run_script(code) == (0, "", "")


def test_the_plan_counts_the_budget_of_every_stream(monkeypatch):
    monkeypatch.delenv("HEADRACE_POOL_MB_PER_STREAM", raising=False)
    assert cuda.planned_pool_budget_bytes(4) == 4 * 256 << 20
    assert cuda.planned_pool_budget_bytes(4, 1) == 4 << 20
    monkeypatch.setenv("HEADRACE_POOL_MB_PER_STREAM", " 32 ")
    assert cuda.planned_pool_budget_bytes(2) == 64 << 20
    monkeypatch.setenv("HEADRACE_POOL_MB_PER_STREAM", "none")
    with pytest.raises(ValueError, match="HEADRACE_POOL_MB_PER_STREAM"):
        cuda.StreamPool(backend="sim")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_streams": 0}, "max_streams"),
        ({"max_streams": 33}, "max_streams"),
        ({"warm_streams": 5}, "warm_streams"),
        ({"priority": "low"}, "priority"),
        ({"budget_mb": 0}, "budget_mb"),
        ({"completion": "callback"}, "completion"),
        ({"spin_us": -1}, "spin_us"),
        ({"spin_us": float("nan")}, "spin_us"),
        ({"backend": "rocm"}, "backend"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        cuda.StreamPool(**{"backend": "sim", **settings})


# Leases.


@pytest.mark.asyncio
async def test_a_stream_is_lent_to_one_at_a_time_and_comes_back():
    async with pooled(max_streams=2) as pool:
        async with pool.lease() as one, pool.lease() as two:
            assert {one.id, two.id} == {1, 2} and one.handle != two.handle
            assert (one.live, one.kind, one.device) == (True, "pooled", 0)
            assert pool.stats().in_use == 2
            with pytest.raises(hr.Capacity) as full:
                pool.try_lease()
            assert full.value.max == 2
        assert not one.live
        with pool.try_lease() as again:
            # The one that was used last.
            assert again.id == one.id
        for use in (one.query, one.record_event, lambda: one.handle, lambda: one.allocate(1)):
            with pytest.raises(hr.CudaError, match="lease of this stream has ended"):
                use()
        with pytest.raises(hr.CudaError, match="has ended"):
            await one
        one.release()


@pytest.mark.asyncio
async def test_who_comes_first_is_served_first():
    order = []

    async def take(pool, number):
        async with pool.lease():
            order.append(number)
            await asyncio.sleep(0)

    async with pooled(max_streams=1) as pool:
        async with pool.lease():
            tasks = [asyncio.create_task(take(pool, number)) for number in range(8)]
            await eventually(lambda: pool.stats().waiting == 8)
            with pytest.raises(hr.Capacity):
                pool.try_lease()
        await asyncio.gather(*tasks)
        assert order == list(range(8))


@pytest.mark.asyncio
async def test_a_lease_that_takes_too_long_says_how_long_that_was():
    async with pooled(max_streams=1) as pool, pool.lease():
        with pytest.raises(hr.LeaseTimeout) as late:
            async with pool.lease(timeout=0.02):
                pass
        assert late.value.waited >= 0.02 and isinstance(late.value, TimeoutError)
        with pytest.raises(ValueError, match="timeout"):
            pool.lease(timeout=-1)
        assert pool.stats().timeouts == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(4))
async def test_a_lease_that_is_cancelled_around_its_grant_gives_the_stream_on(turns):
    """Cancelled that many turns of the loop after the stream came back: before, in and after its grant."""
    async with pooled(max_streams=1) as pool:
        entered = []

        async def take(name):
            async with pool.lease():
                entered.append(name)

        async with pool.lease():
            first = asyncio.create_task(take("first"))
            await eventually(lambda: pool.stats().waiting == 1)
            second = asyncio.create_task(take("second"))
            await eventually(lambda: pool.stats().waiting == 2)
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait_for(second, GUARD)
        await asyncio.wait([first])
        assert entered in (["second"], ["first", "second"])


@pytest.mark.asyncio
async def test_a_lease_that_two_tasks_await_goes_to_the_first():
    async with pooled(max_streams=1) as pool:
        async with pool.lease():
            leasing = pool.lease()
            tasks = [asyncio.create_task(_await(leasing)) for _ in range(2)]
            await eventually(tasks[1].done)
        first, second = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(second, RuntimeError)
        first.release()


@pytest.mark.asyncio
async def test_a_key_gets_its_last_stream_again():
    async with pooled() as pool:
        streams = [await pool.lease(key=key) for key in "abcd"]
        ids = {key: stream.id for key, stream in zip("abcd", streams, strict=True)}
        for stream in streams:
            stream.release()
        for key in "cadbb":
            async with pool.lease(key=key) as stream:
                assert stream.id == ids[key]
        with pytest.raises(TypeError):
            pool.lease(key=[])


@pytest.mark.asyncio
async def test_a_stream_that_is_dropped_comes_back():
    async with pooled(max_streams=1) as pool:
        stream = await pool.lease()
        del stream
        gc.collect()
        async with pool.lease(timeout=GUARD):
            pass
        # A lease that nobody awaited any more after it was granted.
        leasing = pool.lease()
        task = asyncio.ensure_future(leasing)
        await eventually(task.done)
        del task, leasing
        gc.collect()
        async with pool.lease(timeout=GUARD):
            pass


@pytest.mark.asyncio
async def test_a_stream_is_lent_again_only_when_its_work_is_done():
    async with pooled(max_streams=1) as pool:
        with stopped(pool):
            async with pool.lease() as stream:
                stream.spin(1000)
                event = stream.record_event()
            assert pool.stats().draining == 1
            leasing = asyncio.ensure_future(pool.lease())
            await eventually(lambda: pool.stats().waiting == 1)
            await asyncio.sleep(0.005)
            assert not leasing.done() and not event.query()
        again = await leasing
        assert event.query()
        again.release()


@pytest.mark.asyncio
async def test_threads_lease_without_a_loop():
    def work(pool):
        with pool.lease_blocking(timeout=GUARD) as stream:
            stream.spin(1000)
            stream.synchronize()
            return stream.query()

    async with pooled(max_streams=2) as pool:
        assert await asyncio.gather(*(asyncio.to_thread(work, pool) for _ in range(6))) == [True] * 6
        with pytest.raises(RuntimeError, match="event loop"):
            pool.lease_blocking()
        async with pool.lease() as stream:
            for blocking in (stream.synchronize, stream.record_event().synchronize):
                with pytest.raises(RuntimeError, match="event loop"):
                    blocking()


@pytest.mark.asyncio
async def test_a_closed_pool_refuses_and_waits_for_what_is_lent():
    pool = cuda.StreamPool(max_streams=1, backend="sim")
    stream = await pool.lease()
    waiting = asyncio.ensure_future(pool.lease())
    await eventually(lambda: pool.stats().waiting == 1)
    closing = asyncio.ensure_future(pool.close())
    with pytest.raises(hr.PoolClosed):
        await waiting
    with pytest.raises(hr.PoolClosed):
        await pool.lease()
    assert pool.closed and not await pool.close(0.01)
    assert not closing.done()
    await stream
    stream.release()
    assert await asyncio.wait_for(closing, GUARD)
    assert await pool.close(1)


@pytest.mark.asyncio
async def test_what_is_raised_in_the_block_of_a_pool_is_raised_after_it_was_closed():
    with pytest.raises(ArithmeticError):
        async with cuda.StreamPool(backend="sim") as pool, pool.lease():
            raise ArithmeticError
    assert pool.closed and pool.stats().in_use == 0


@pytest.mark.asyncio
async def test_streams_are_found_by_number_and_those_of_others_are_wrapped():
    class Theirs:
        version = 0

        def __cuda_stream__(self):
            return (self.version, 4096)

    async with pooled() as pool:
        default = pool.resolve(0)
        assert default is not None and (default.kind, default.id) == ("default", 0)
        await default
        assert pool.resolve(1) is None
        async with pool.lease() as stream:
            found = pool.resolve(stream.id)
            assert found is not None and found.handle == stream.handle == int(stream)
            assert stream.__cuda_stream__() == (0, stream.handle)
        assert pool.wrap(4096).handle == pool.wrap(Theirs()).handle == 4096
        assert pool.wrap(4096).kind == "external"
        Theirs.version = 1
        with pytest.raises(ValueError, match="version 1"):
            pool.wrap(Theirs())
        with pytest.raises(TypeError):
            pool.wrap("no stream")
        with pytest.raises(ValueError, match="simulated"):
            default.torch()


# Awaiting.


@pytest.mark.asyncio
@pytest.mark.parametrize("completion", ["event", "poll", "hostfn"])
async def test_streams_and_events_are_awaited_while_the_loop_goes_on(completion):
    async with pooled(completion=completion) as pool:
        assert pool.completion == completion
        async with pool.lease() as one, pool.lease() as two:
            await one
            before = one.record_event(timing=True)
            with stopped(pool):
                one.spin(20_000)
                event = one.record_event(timing=True)
                two.wait_event(event)
                after = two.record_event()
                waiting = asyncio.ensure_future(two)
                # The loop goes on.
                await asyncio.sleep(0.005)
                assert not waiting.done() and not event.query() and not after.query()
            await waiting
            assert event.query()
            await asyncio.gather(event, after, one)
            assert before.elapsed(event) >= 0.02


@pytest.mark.asyncio
async def test_whoever_is_cancelled_while_it_waits_leaves_the_work_alone():
    async with pooled() as pool, pool.lease() as stream:
        with stopped(pool):
            stream.spin(100)
            waiting = asyncio.ensure_future(stream)
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not stream.query()
        await stream


@pytest.mark.asyncio
async def test_an_awaitable_is_awaited_once_and_by_one():
    async with pooled() as pool, pool.lease() as stream:
        copy = stream.copy_to_device(b"x")
        await copy
        with pytest.raises(RuntimeError, match="already"):
            await copy
        leasing = pool.lease()
        (await leasing).release()
        with pytest.raises(RuntimeError, match="already"):
            await leasing
        with stopped(pool):
            stream.spin(100)
            wait = stream.__await__()
            tasks = [asyncio.ensure_future(_await(wait)) for _ in range(2)]
            await eventually(lambda: tasks[1].done())
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in done] == [type(None), RuntimeError]


async def _await(awaitable):
    return await awaitable


# Failures.


@pytest.mark.asyncio
async def test_a_stream_that_cannot_be_created_is_an_error_and_never_the_default_stream():
    async with pooled() as pool:
        pool._fail("create_stream", 2)
        with pytest.raises(hr.ForkFailed) as failed:
            await pool.lease()
        assert (failed.value.code, failed.value.name) == (2, "CUDA_ERROR_OUT_OF_MEMORY")
        async with pool.lease() as stream:
            assert stream.id >= 1


@pytest.mark.asyncio
async def test_an_error_that_is_not_sticky_fails_its_call_alone():
    async with pooled() as pool, pool.lease() as stream:
        pool._fail("copy_to_device", 1)
        with pytest.raises(hr.CudaError) as failed:
            await stream.copy_to_device(b"x")
        assert type(failed.value) is hr.CudaError and failed.value.code == 1 and pool.healthy
        assert bytes(await stream.copy_to_host(await stream.copy_to_device(b"y"))) == b"y"
        assert pool.stats().errors == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("completion", ["event", "poll", "hostfn"])
async def test_a_sticky_error_fails_everybody_and_refuses_leases(completion):
    pool = cuda.StreamPool(max_streams=2, completion=completion, backend="sim")
    one, two = await pool.lease(), await pool.lease()
    one.spin(10_000_000)
    waits = [one, two.record_event(), one.record_event(), pool.lease(), one.copy_to_device(bytes(100_000))]
    two.wait_event(waits[2])
    tasks = [asyncio.ensure_future(_await(each)) for each in [*waits, two]]
    await eventually(lambda: pool.stats().waiting == 1)
    pool._lose(719)
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1)
    # The second stream had nothing before its event.
    assert {type(each) for each in ended} <= {hr.ContextPoisoned, type(None)}
    assert sum(isinstance(each, hr.ContextPoisoned) for each in ended) >= 5
    assert not pool.healthy and isinstance(pool.lost, hr.ContextPoisoned) and pool.stats().poisoned
    with pytest.raises(hr.ContextPoisoned, match="restarted") as refused:
        await pool.lease()
    assert refused.value.code == 719 and "CUDA_ERROR_LAUNCH_FAILED" in refused.value.cause
    one.release()
    two.release()
    with pytest.raises(hr.ContextPoisoned):
        await pool.close()


def test_errors_know_what_they_are():
    for name in ("CudaUnavailable", "Capacity", "LeaseTimeout", "PoolClosed", "OutOfBudget", "ForkFailed"):
        assert issubclass(getattr(hr, name), hr.CudaError)
    assert issubclass(hr.CudaForkError, hr.ForkError) and issubclass(hr.CudaForkError, RuntimeError)
    error = pickle.loads(pickle.dumps(hr.OutOfBudget("no", requested=1, limit=2)))
    assert (error.requested, error.limit, str(error)) == (1, 2, "no")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_pools_of_several_loops_and_threads_know_their_own(loop):
    if loop == "uvloop":
        from uvloop import new_event_loop
    else:
        new_event_loop = asyncio.SelectorEventLoop
    pool = cuda.StreamPool(max_streams=2, backend="sim")
    results = []

    async def main(number):
        for _ in range(20):
            async with pool.lease() as stream:
                stream.spin(100)
                data = bytes([number]) * 70_000
                assert bytes(await stream.copy_to_host(await stream.copy_to_device(data))) == data
        results.append(number)

    def work(number):
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    assert sorted(results) == [0, 1, 2]


def test_a_forked_child_gets_a_clear_error(tmp_path):
    code = """
import asyncio, os, sys, warnings
import headrace as hr
from headrace import cuda

# From Python 3.12 on it warns of a fork beside threads.
warnings.simplefilter("ignore", DeprecationWarning)

async def main():
    pool = cuda.StreamPool(backend="sim")
    stream = await pool.lease()
    event = stream.record_event()
    buffer = await stream.copy_to_device(b"x")
    child = os.fork()
    if child == 0:
        failed = []
        for use in (stream.query, event.query, lambda: buffer.nbytes, pool.try_lease, stream.__await__):
            try:
                use()
            except hr.CudaForkError:
                failed.append(use)
        stream.release()
        del stream, event, buffer
        os._exit(0 if len(failed) == 5 else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    await stream
    stream.release()
    await pool.close()
asyncio.run(main())
"""
    assert run_script(code) == (0, "", "")


def test_the_test_of_maps_sees_what_it_looks_for():
    assert os.path.exists("/proc/self/maps") and sys.platform == "linux"


def test_two_loops_of_one_thread_take_turns_with_a_pool():
    pool = cuda.StreamPool(max_streams=1, backend="sim")
    loops = [asyncio.SelectorEventLoop() for _ in range(2)]

    async def use():
        async with pool.lease() as stream:
            stream.spin(1000)
            await stream
            return bytes(await stream.copy_to_host(await stream.copy_to_device(b"x" * 70_000)))

    for _ in range(3):
        for loop in loops:
            assert loop.run_until_complete(asyncio.wait_for(use(), GUARD)) == b"x" * 70_000
    for loop in loops:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
