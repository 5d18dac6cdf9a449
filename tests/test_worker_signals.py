"""Worker processes end with their parent, whichever way it ends: drained after one signal, at once after a
second, and in no case left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import headrace as hr
import pytest

from pool import Pool, Starts, gone, run_pool, serve_pool
from support import eventually

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

ENGINES = ("pool_engines:who", "pool_engines:gated", "pool_engines:block")


@contextlib.asynccontextmanager
async def streaming(pool: Pool, gate: str) -> AsyncIterator[tuple[hr.Router, list[hr.ResponseStream]]]:
    """A router, and a stream at each worker that has begun and waits at its gate."""
    async with hr.Router(pool.addresses) as router:
        streams = []
        for address in pool.addresses:
            streams.append(await router.generate(gate, endpoint="gated", instance=address))
            assert await anext(streams[-1]) == "before"
        yield router, streams


async def drained(pool: Pool) -> None:
    """Wait until both workers have said that they drain."""
    for _ in range(2):
        await pool.line("is draining, 1 requests in flight")


async def finish(streams: list[hr.ResponseStream], gate) -> None:
    gate.touch()
    for stream in streams:
        assert await stream.collect() == ["after"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_every_worker(number, tmp_path):
    gate = tmp_path / "gate"
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        async with streaming(pool, str(gate)) as (_, streams):
            pool.signal(number)
            await drained(pool)
            await finish(streams, gate)
        code, out, err = await pool.ended()
        assert (code, out, err) == (0, "", "")


async def test_ctrl_c_reaches_the_whole_process_group_and_drains(tmp_path):
    gate = tmp_path / "gate"
    async with serve_pool(*ENGINES, start_new_session=True) as pool:
        await pool.ready(2)
        async with streaming(pool, str(gate)) as (_, streams):
            os.killpg(pool.process.pid, signal.SIGINT)
            await drained(pool)
            await finish(streams, gate)
        assert (await pool.ended())[0] == 0


@pytest.mark.parametrize("parent_first", [True, False])
async def test_a_service_manager_that_signals_every_process_drains_them(parent_first, tmp_path):
    gate = tmp_path / "gate"
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        workers = [worker.pid for worker in pool.workers.values()]
        turns = [[pool.process.pid], workers] if parent_first else [workers, [pool.process.pid]]
        async with streaming(pool, str(gate)) as (_, streams):
            for pid in turns[0]:
                os.kill(pid, signal.SIGTERM)
            await drained(pool)
            # An order and a signal are not two signals, whichever comes first.
            for pid in turns[1]:
                os.kill(pid, signal.SIGTERM)
            await finish(streams, gate)
        assert (await pool.ended())[0] == 0


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_them_now_and_tells_the_callers(first, tmp_path):
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        async with streaming(pool, str(tmp_path / "never")) as (_, streams):
            pool.signal(first)
            await drained(pool)
            pool.signal(signal.SIGTERM)
            for stream in streams:
                with pytest.raises(hr.Disconnected) as caught:
                    await anext(stream)
                assert caught.value.reason == "shutdown"
            code, _, err = await pool.ended()
        assert (code, err) == (0, "")


async def test_a_blocked_worker_is_ended_by_a_second_signal_too():
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        async with hr.Router(pool.addresses) as router:
            stream = await router.generate(None, endpoint="block", instance=pool.addresses[0])
            assert await anext(stream) == "blocking"
            pool.signal(signal.SIGTERM)
            await pool.line("worker 1 of 2 is draining")
            pool.signal(signal.SIGTERM)
            code, _, _ = await pool.ended()
            assert code == 0
            with pytest.raises(hr.Disconnected):
                await anext(stream)


async def test_a_drain_that_runs_out_of_time_ends(tmp_path):
    async with serve_pool(*ENGINES, "--drain-timeout", "0.2") as pool:
        await pool.ready(2)
        async with streaming(pool, str(tmp_path / "never")) as (_, streams):
            pool.signal(signal.SIGTERM)
            for stream in streams:
                with pytest.raises(hr.Disconnected) as caught:
                    await anext(stream)
                assert caught.value.reason == "shutdown"
        assert (await pool.ended())[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_workers_that_do_not_serve_yet(number, tmp_path):
    starts = Starts(tmp_path, "hang")
    async with serve_pool("pool_starts:pid", env=starts.env, start_new_session=True) as pool:
        await eventually(lambda: len(starts.pids) == 2)
        # As Ctrl-C in a terminal. It interrupts no import, so there is no traceback.
        os.killpg(pool.process.pid, number)
        code, _, err = await pool.ended()
        assert (code, err) == (0, "")
        await gone(starts.pids)


async def test_a_signal_during_a_restart_drains(tmp_path):
    gate = tmp_path / "gate"
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        async with streaming(pool, str(gate)) as (_, streams):
            pool.signal(signal.SIGHUP)
            await pool.line("worker 0 of 2 is draining, 1 requests in flight")
            pool.signal(signal.SIGTERM)
            await pool.line("worker 1 of 2 is draining, 1 requests in flight")
            await finish(streams, gate)
        code, _, err = await pool.ended()
        assert code == 0
        assert "serving" not in err


async def test_workers_of_a_killed_parent_drain_and_end(tmp_path):
    gate = tmp_path / "gate"
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        async with streaming(pool, str(gate)) as (router, streams):
            pool.signal(signal.SIGKILL)
            await asyncio.to_thread(pool.process.popen.wait)
            await eventually(lambda: [each.state for each in router.instances()] == ["draining"] * 2)
            await finish(streams, gate)
        await gone(pool.pids)


async def test_a_blocked_worker_of_a_killed_parent_ends():
    async with serve_pool(*ENGINES, "--drain-timeout", "0.1") as pool:
        await pool.ready(2)
        async with hr.Router(pool.addresses) as router:
            stream = await router.generate(None, endpoint="block", instance=pool.addresses[0])
            assert await anext(stream) == "blocking"
            pool.signal(signal.SIGKILL)
            await gone(pool.pids)
            with pytest.raises(hr.Disconnected):
                await anext(stream)


async def test_workers_of_a_killed_parent_that_do_not_serve_yet_end(tmp_path):
    starts = Starts(tmp_path, "hang")
    async with serve_pool("pool_starts:pid", env=starts.env) as pool:
        await eventually(lambda: len(starts.pids) == 2)
        pool.signal(signal.SIGKILL)
        await gone(starts.pids)


async def test_a_terminal_that_is_closed_ends_them(tmp_path):
    gate = tmp_path / "gate"
    ours, theirs = os.openpty()
    code = (
        "import fcntl, sys, termios\n"
        f"fcntl.ioctl({theirs}, termios.TIOCSCTTY, 0)\n"
        "from headrace.cli import main\n"
        f"sys.exit(main(['serve', '--workers', '2', *{ENGINES!r}]))\n"
    )
    try:
        async with run_pool("-c", code, pass_fds=[theirs], start_new_session=True) as pool:
            await pool.ready(2)
            async with streaming(pool, str(gate)) as (_, streams):
                os.close(theirs)
                theirs = -1
                os.close(ours)
                ours = -1
                await drained(pool)
                await finish(streams, gate)
            assert (await pool.ended())[0] == 0
    finally:
        for descriptor in (ours, theirs):
            if descriptor >= 0:
                os.close(descriptor)


async def test_under_nohup_a_hang_up_changes_nothing():
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from headrace.cli import main\n"
        f"sys.exit(main(['serve', '--workers', '2', *{ENGINES!r}]))\n"
    )
    async with run_pool("-c", code) as pool:
        await pool.ready(2)
        pool.signal(signal.SIGHUP)
        pool.signal(signal.SIGTERM)
        exit_code, _, err = await pool.ended()
        assert exit_code == 0
        assert "restarting" not in err
