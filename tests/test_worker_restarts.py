"""Worker processes that crash are started again at their addresses, until it is a crash loop. A rolling
restart replaces each in turn and no request is lost.
"""

from __future__ import annotations

import asyncio
import os
import signal

import headrace as hr
import pytest
from headrace._supervisor import Crashes

from pool import Pool, Starts, exists, gone, is_running, serve_pool, while_calling
from support import eventually, routing

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

ENGINES = ("pool_engines:who", "pool_engines:gated", "pool_engines:count", "pool_engines:crash")


async def stop(pool: Pool) -> None:
    pool.signal(signal.SIGTERM)
    code, _, err = await pool.ended()
    assert code == 0
    assert "Traceback" not in err


# --- crashes ---


async def test_a_killed_worker_comes_back_at_its_address_while_the_others_serve():
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        killed, other = pool.workers[0], pool.workers[1]
        async with routing(pool.addresses) as router:

            async def call_the_other() -> None:
                answer = await router.call(1, endpoint="who", instance=other.address)
                assert answer["pid"] == other.pid

            async def comes_back() -> None:
                os.kill(killed.pid, signal.SIGKILL)
                assert (await pool.line("was ended by")).startswith(
                    "headrace: worker 0 of 2 was ended by SIGKILL; it starts again in 0.1 s"
                )
                await pool.ready()

            (made,) = await while_calling(asyncio.ensure_future(comes_back()), [call_the_other])
            assert made > 0
            back = pool.workers[0]
            assert back.address == killed.address
            assert back.pid != killed.pid
            assert back.instance_id != killed.instance_id
            answer = await router.call(1, endpoint="who", instance=back.address, timeout=20)
            assert (answer["pid"], answer["index"]) == (back.pid, "0")
            # It was reaped.
            assert not exists(killed.pid)
        await stop(pool)


async def test_an_engine_that_ends_its_process_is_told_by_its_exit_code():
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        async with routing(pool.addresses) as router:
            with pytest.raises(hr.Disconnected):
                await router.call(3, endpoint="crash", instance=pool.addresses[1])
            await pool.line("worker 1 of 2 exited with code 3; it starts again in 0.1 s")
            await pool.ready()
            answer = await router.call(1, endpoint="who", instance=pool.addresses[1], timeout=20)
            assert answer["pid"] == pool.workers[1].pid
        await stop(pool)


async def test_a_worker_that_somebody_else_stops_drains_and_comes_back(tmp_path):
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        stopped = pool.workers[1]
        async with routing(pool.addresses) as router:
            stream = await router.generate(str(tmp_path / "gate"), endpoint="gated", instance=stopped.address)
            assert await anext(stream) == "before"
            # It has nothing to restart, and goes on.
            os.kill(stopped.pid, signal.SIGHUP)
            os.kill(stopped.pid, signal.SIGTERM)
            await pool.line("worker 1 of 2 is draining, 1 requests in flight")
            (tmp_path / "gate").touch()
            assert await stream.collect() == ["after"]
            await pool.line("exited with code 0; it starts again")
            await pool.ready()
            assert pool.workers[1].address == stopped.address
        await stop(pool)


async def test_a_crash_loop_ends_everything_and_lets_the_others_finish(tmp_path):
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        async with hr.Router(pool.addresses) as router:
            stream = await router.generate(
                str(tmp_path / "gate"), endpoint="gated", instance=pool.addresses[0]
            )
            assert await anext(stream) == "before"
            for pause_s in ("0.1", "0.2", "0.4", "0.8"):
                os.kill(pool.workers[1].pid, signal.SIGKILL)
                await pool.line(f"it starts again in {pause_s} s")
                await pool.ready()
            os.kill(pool.workers[1].pid, signal.SIGKILL)
            line = await pool.line("all workers stop")
            assert "worker 1 of 2 ended 5 times within 30 s" in line
            assert "was ended by SIGKILL" in line
            await pool.line("worker 0 of 2 is draining, 1 requests in flight")
            (tmp_path / "gate").touch()
            assert await stream.collect() == ["after"]
        code, _, err = await pool.ended()
        assert code == 1
        assert "Traceback" not in err


async def test_workers_that_never_serve_are_given_up(tmp_path):
    starts = Starts(tmp_path, "exit")
    async with serve_pool("pool_starts:pid", env=starts.env) as pool:
        code, _, err = await pool.ended()
        assert code == 1
        assert "ended 3 times in a row before it served" in err
        assert "The last time it exited with code 7" in err
        assert 3 <= len(starts.pids) <= 6
        await gone(starts.pids)


async def test_a_worker_that_cannot_come_back_says_why(tmp_path):
    starts = Starts(tmp_path, "serve")
    async with serve_pool("pool_starts:pid", env=starts.env) as pool:
        await pool.ready(2)
        starts.how("raise")
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        await pool.line("was ended by SIGKILL")
        await pool.line("could not serve")
        await pool.line("the new version is broken")
        starts.how("serve")
        await pool.ready()
        await stop(pool)


async def test_pauses_double_and_begin_anew_after_a_steady_time():
    crashes = Crashes()
    # Far enough apart to be no loop.
    pauses_s = [crashes.ended(now_s, now_s - 9.9) for now_s in range(0, 900, 100)]
    assert pauses_s == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert crashes.ended(1000, 990) == 0.1
    assert crashes.ended(1100, None) == 0.2
    assert crashes.loop == ""


@pytest.mark.parametrize(("apart_s", "is_loop"), [(7.4, True), (7.6, False)])
async def test_five_ends_within_thirty_seconds_are_a_crash_loop(apart_s, is_loop):
    crashes = Crashes()
    for number in range(20):
        crashes.ended(number * apart_s, number * apart_s - 1)
        assert (crashes.loop != "") == (is_loop and number >= 4)


async def test_three_processes_in_a_row_that_never_serve_are_a_crash_loop():
    crashes = Crashes()
    for now_s, ready_at_s, is_loop in (
        (100, None, False),
        (200, None, False),
        (300, 299, False),
        (400, None, False),
        (500, None, False),
        (600, None, True),
    ):
        crashes.ended(now_s, ready_at_s)
        assert (crashes.loop != "") == is_loop


# --- restarting one after the other ---


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_rolling_restart_under_load_loses_no_request(workers, kind, tmp_path):
    address = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/socket"
    async with serve_pool(*ENGINES, "--address", address, workers=workers) as pool:
        await pool.ready(workers)
        before = dict(pool.workers)
        open_files = len(os.listdir(f"/proc/{pool.process.pid}/fd"))
        # Calls that would have to wait for a worker fail, so at no moment may there be none.
        settings = {"instance_timeout": 0.1}
        async with (
            routing(pool.addresses, **settings) as router,
            routing(pool.addresses, **settings) as another,
        ):
            await router.wait_for_instances(workers, timeout=20)
            await another.wait_for_instances(workers, timeout=20)
            answered: set[int] = set()

            async def unary() -> None:
                answered.add((await router.call(1, endpoint="who"))["pid"])

            async def streamed() -> None:
                assert await (await another.generate(20, endpoint="count")).collect() == list(range(20))

            async def restarted() -> None:
                for _ in range(2):
                    # The load is there, and on all of them.
                    await eventually(lambda: answered >= pool.pids)
                    pool.signal(signal.SIGHUP)
                    await pool.line("all workers were restarted")
                await eventually(lambda: answered >= pool.pids)

            calls = [unary, streamed] * 8
            made = await while_calling(asyncio.ensure_future(restarted()), calls)
            assert min(made) > 0
            assert len(pool.pids) == 3 * workers
            assert len(os.listdir(f"/proc/{pool.process.pid}/fd")) == open_files
            for index, worker in pool.workers.items():
                assert worker.address == before[index].address
                answer = await router.call(1, endpoint="who", instance=worker.address)
                assert answer["pid"] == worker.pid
        await stop(pool)


async def test_a_restart_lets_a_long_answer_finish_before_the_next_turn(tmp_path):
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        before = dict(pool.workers)
        async with routing(pool.addresses) as router:
            stream = await router.generate(
                str(tmp_path / "gate"), endpoint="gated", instance=before[0].address
            )
            assert await anext(stream) == "before"
            pool.signal(signal.SIGHUP)
            await pool.line("worker 0 of 2 is draining, 1 requests in flight")
            await eventually(lambda: router.instances()[0].state == "draining")
            # Others serve meanwhile; nobody else is restarted yet.
            for _ in range(20):
                assert (await router.call(1, endpoint="who"))["pid"] == before[1].pid
            assert pool.workers == before
            (tmp_path / "gate").touch()
            assert await stream.collect() == ["after"]
            await pool.line("all workers were restarted")
        assert {worker.pid for worker in pool.workers.values()}.isdisjoint(
            worker.pid for worker in before.values()
        )
        await stop(pool)


async def test_a_version_that_does_not_start_takes_one_worker_and_no_more(tmp_path):
    starts = Starts(tmp_path, "serve")
    async with serve_pool("pool_starts:pid", env=starts.env) as pool:
        await pool.ready(2)
        before = dict(pool.workers)
        starts.how("raise")
        pool.signal(signal.SIGHUP)
        await pool.line("the new version is broken: it stays down")
        assert not is_running(before[0].pid)
        async with routing(pool.addresses) as router:
            for _ in range(20):
                assert await router.call(None) == before[1].pid
            starts.how("serve")
            pool.signal(signal.SIGHUP)
            await pool.line("all workers were restarted")
            for index in (0, 1):
                assert pool.workers[index].address == before[index].address
                answer = await router.call(None, instance=pool.workers[index].address, timeout=20)
                assert answer == pool.workers[index].pid
        await stop(pool)


async def test_a_version_that_does_not_last_takes_one_worker_and_no_more():
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        before = dict(pool.workers)
        async with hr.Router(pool.addresses) as router:
            await router.wait_for_instances(2, timeout=20)
            pool.signal(signal.SIGHUP)
            await pool.line("worker 0 of 2 is draining")
        # The router is gone, so the restart waits for it at the new process.
        await pool.ready()
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        await pool.line("worker 0 of 2 did not last; the others go on as they are")
        await pool.ready()
        assert pool.workers[0].address == before[0].address
        assert pool.workers[1] == before[1]
        await stop(pool)


async def test_a_restart_asked_for_during_a_restart_follows_it():
    async with serve_pool(*ENGINES) as pool:
        await pool.ready(2)
        pool.signal(signal.SIGHUP)
        await pool.line("restarting 2 workers")
        pool.signal(signal.SIGHUP)
        await pool.line("all workers were restarted")
        await pool.line("all workers were restarted")
        assert len(pool.pids) == 6
        await stop(pool)


async def test_a_worker_that_waits_for_its_next_start_is_restarted_at_once(tmp_path):
    starts = Starts(tmp_path, "serve")
    async with serve_pool("pool_starts:pid", env=starts.env) as pool:
        await pool.ready(2)
        starts.how("exit")
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        await pool.line("exited with code 7; it starts again in 0.2 s")
        starts.how("serve")
        pool.signal(signal.SIGHUP)
        await pool.line("all workers were restarted")
        await eventually(lambda: len([pid for pid in starts.pids if is_running(pid)]) == 2)
        await stop(pool)
