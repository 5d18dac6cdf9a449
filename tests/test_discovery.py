"""Workers and routers that find each other."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from pathlib import Path

import headrace as hr
import pytest

from pool import serve_pool
from support import GUARD, WORKERS, eventually, idle, python, worker_process

pytestmark = pytest.mark.asyncio


async def echo(request):
    return request


async def shout(request):
    return request.upper()


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory in which the workers of this test list themselves."""
    monkeypatch.setenv("HEADRACE_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


async def test_serve_and_router_find_each_other_with_no_address(runtime_dir):
    async with hr.serve(echo) as worker, hr.Router() as router:
        assert await router.call("x") == "x"
        assert [each.instance_id for each in router.instances()] == [worker.instance_id]
        assert entries(runtime_dir) == [worker.instance_id]
        directory = runtime_dir / "default"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert entries(runtime_dir) == []


async def test_a_router_waits_for_a_worker_that_starts_later(runtime_dir):
    async with hr.Router() as router:
        waiting = asyncio.ensure_future(router.call("x"))
        await asyncio.sleep(0)
        async with hr.serve(echo):
            assert await waiting == "x"


async def test_namespaces_are_apart(runtime_dir):
    async with (
        hr.serve(echo, namespace="blue") as blue,
        hr.serve(shout, namespace="a/../green") as green,
        hr.Router(namespace="blue") as to_blue,
        hr.Router(namespace="a/../green") as to_green,
    ):
        assert (await to_blue.call("x"), await to_green.call("x")) == ("x", "X")
        assert [each.address for each in to_blue.instances()] == [blue.address]
        assert [each.address for each in to_green.instances()] == [green.address]
        assert all(path.parent == runtime_dir for path in runtime_dir.iterdir())


async def test_nobody_there_is_an_error_that_names_the_directory(runtime_dir):
    async with hr.Router(instance_timeout=0.05) as router:
        with pytest.raises(hr.NoInstances, match=f"file://{runtime_dir}/default"):
            await router.call("x")


async def test_a_killed_worker_is_removed_and_its_successor_found(runtime_dir):
    async with hr.Router(instance_timeout=GUARD) as router:
        async with worker_process() as (process, address):
            assert await router.call("x", endpoint="echo") == "x"
            process.signal(signal.SIGKILL)
            await eventually(lambda: router.stats()["links"] == 0)
            await eventually(lambda: entries(runtime_dir) == [])
            assert address in {each.address for each in router.instances()}
        async with worker_process() as (_, second):
            assert await router.call("x", endpoint="echo") == "x"
            states = {each.address: each.state for each in router.instances()}
            assert states[second] == "up"
            assert states.get(address) in (None, "tombstoned")


async def test_a_draining_worker_leaves_the_list_before_its_streams_end(runtime_dir):
    release = asyncio.Event()

    async def slow(request):
        yield 1
        await release.wait()
        yield 2

    async with hr.serve(slow) as worker, hr.Router() as router:
        stream = await router.generate(None)
        assert await anext(stream) == 1
        drained = asyncio.ensure_future(worker.drain())
        await eventually(lambda: entries(runtime_dir) == [])
        await eventually(lambda: router.instances()[0].state == "tombstoned")
        with pytest.raises(hr.NoInstances, match="no longer listed"):
            await router.call("x", instance=worker.instance_id)
        release.set()
        assert await stream.collect() == [2]
        await drained
        await eventually(lambda: idle(worker, router))


async def test_a_served_module_is_found_with_no_address(runtime_dir):
    arguments = ("-m", "headrace", "serve", "cli_engines:nested.echo")
    environment = {**os.environ, "PYTHONPATH": str(WORKERS)}
    async with hr.Router(instance_timeout=GUARD) as router:
        with python(*arguments, env=environment) as process:
            assert await router.call("x") == "x"
            [instance] = router.instances()
            line = await process.error_line()
            assert instance.address in line
            assert instance.instance_id in line
            process.signal(signal.SIGTERM)
            await eventually(lambda: entries(runtime_dir) == [])
            assert (await process.ended())[0] == 0


async def test_worker_processes_are_found_with_no_address_and_so_is_one_that_was_started_again(runtime_dir):
    async with serve_pool("pool_engines:who") as pool, hr.Router() as router:
        await pool.ready(2)
        await router.wait_for_instances(2, timeout=GUARD)

        async def all_answer() -> None:
            pids: set[int] = set()
            while pids != {worker.pid for worker in pool.workers.values()}:
                pids.add((await router.call(None, timeout=GUARD, idempotent=True))["pid"])

        assert sorted(each.address for each in router.instances()) == sorted(pool.addresses)
        await all_answer()
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        await pool.ready()
        await eventually(lambda: pool.workers[0].instance_id in entries(runtime_dir))
        await router.wait_for_instances(2, timeout=GUARD)
        await all_answer()
        pool.signal(signal.SIGTERM)
        await eventually(lambda: entries(runtime_dir) == [])
        assert (await pool.ended())[0] == 0


async def test_a_directory_by_name(tmp_path, runtime_dir):
    place = f"file://{tmp_path}/workers"
    async with (
        hr.serve(echo, discovery=place) as worker,
        hr.serve(shout, discovery=False) as unlisted,
        hr.Router([place, unlisted.address]) as router,
    ):
        assert await router.call("x", endpoint="echo") == "x"
        assert await router.call("x", endpoint="shout") == "X"
        assert {each.address for each in router.instances()} == {worker.address, unlisted.address}
    assert entries(runtime_dir) == []


async def test_what_is_no_directory_is_refused():
    for wrong in ("file:workers", "file://workers", "file://"):
        with pytest.raises(ValueError, match="file:///path"):
            hr.Router(wrong)
        with pytest.raises(ValueError, match="file:///path"):
            hr.serve(echo, discovery=wrong)


async def test_a_directory_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="discovery"):
        await hr.serve(echo, discovery=f"file://{tmp_path}/file/workers")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(OSError, match="others may write"):
        await hr.serve(echo, discovery=f"file://{shared}")
    # Nobody asked for the user's own directory, so without it a worker serves all the same.
    monkeypatch.setenv("HEADRACE_RUNTIME_DIR", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="discovery=False"):
        worker = await hr.serve(echo)
    async with worker, hr.Router(worker.address) as router:
        assert await router.call("x") == "x"
    with pytest.raises(OSError, match="discovery"):
        await hr.serve(echo, discovery=True)
