"""The port for metrics and health: who shares it, what it says of a process that is not well, and one scrape
for all worker processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import headrace as hr
import pytest
from headrace._loop import current_hub

from pool import serve_pool
from scrapes import Scrape, fetch, get, says
from support import GUARD, WORKERS, eventually, python, routing, serving

pytestmark = pytest.mark.asyncio

QUICK = {"health_interval": 0.05, "health_timeout": 0.15}
ANY = "127.0.0.1:0"


async def echo(request: Any) -> Any:
    return request


async def test_worker_and_router_of_a_process_share_a_port():
    async with hr.serve(echo, metrics=ANY) as worker:
        assert worker.metrics_address is not None
        # By its real address another worker shares it only if it was named so.
        async with hr.serve({"other": echo}) as plain:
            assert plain.metrics_address is None
        answer = await says(worker.metrics_address, "/ready", 200)
        assert [each["instance_id"] for each in answer["workers"]] == [worker.instance_id]
        endpoints = answer["workers"][0]["endpoints"]
        # It has no health check, so nobody looks.
        assert [(each["name"], each["answers"]) for each in endpoints] == [("echo", None)]
        address = worker.metrics_address
    with pytest.raises(OSError):
        await get(address, "/live")
    async with (
        hr.serve(echo, metrics=address) as worker,
        hr.Router(worker.address, metrics=address) as router,
    ):
        assert worker.metrics_address == router.metrics_address == address
        assert await router.call("hello") == "hello"
        answer = await says(address, "/ready", 200)
        assert (len(answer["workers"]), len(answer["routers"])) == (1, 1)
        status, text = await get(address, "/metrics")
        assert status == 200 and Scrape(text).get("worker_requests_total", endpoint="echo") >= 1.0
        answer = await says(address, "/live", 200)
        assert answer == {"live": True, "reasons": []}
        await worker.aclose()
        await says(address, "/ready", 503, "no worker takes requests")
    with pytest.raises(OSError):
        await get(address, "/live")


async def test_an_address_that_cannot_be_used_names_the_setting():
    for wrong in ("nowhere", "127.0.0.1"):
        with pytest.raises(ValueError, match=r"metrics: .* is not an address"):
            hr.serve(echo, metrics=wrong)
    with pytest.raises(ValueError, match=r"metrics: .*loopback"):
        hr.serve(echo, metrics="0.0.0.0:0")
    with pytest.raises(ValueError, match=r"metrics: .*loopback"):
        hr.Router("127.0.0.1:1", metrics="0.0.0.0:0")
    async with hr.serve(echo, metrics="0.0.0.0:0", insecure=True) as worker:
        assert worker.metrics_address is not None
        await says(worker.metrics_address.replace("0.0.0.0", "127.0.0.1"), "/live", 200)
        taken = worker.metrics_address
        with pytest.raises(OSError, match=r"metrics: cannot listen on .*metrics="):
            await hr.serve(echo, metrics=taken, insecure=True)
        with pytest.raises(OSError, match=r"metrics: cannot listen on"):
            hr.Router(worker.address, metrics=taken, insecure=True)


async def test_a_process_is_not_ready_while_its_worker_drains_or_is_full():
    free = asyncio.Event()

    async def gated(request: Any) -> Any:
        await free.wait()
        return request

    settings = {"metrics": ANY, "concurrency": 1, "queue": 1}
    async with serving(gated, **settings) as (worker, router):
        address = worker.metrics_address
        await says(address, "/ready", 200)
        calls = [asyncio.ensure_future(router.call(number)) for number in range(2)]
        answer = await says(address, "/ready", 503, "its queue is full: 1 requests running and 1 queued")
        (endpoint,) = answer["workers"][0]["endpoints"]
        assert (endpoint["inflight_requests"], endpoint["queued_requests"]) == (1, 1)
        assert answer["reasons"] == [
            f"worker {worker.instance_id}: its queue is full: 1 requests running and 1 queued"
        ]
        draining = asyncio.ensure_future(worker.drain())
        await says(address, "/ready", 503, "it is draining")
        await says(address, "/live", 200)
        free.set()
        assert await asyncio.gather(*calls) == [0, 1]
        await draining
        with pytest.raises(OSError):
            await get(address, "/ready")


class Model:
    """Answers while it is not stuck."""

    health_check = "ping"

    def __init__(self) -> None:
        self.free = asyncio.Event()

    async def generate(self, request: Any) -> Any:
        await self.free.wait()
        yield request


async def test_a_process_is_not_ready_while_its_engine_is_stuck():
    model = Model()
    async with hr.serve(model, metrics=ANY, **QUICK) as worker:
        answer = await says(worker.metrics_address, "/ready", 503, 'engine \\"Model\\" has answered nobody')
        (endpoint,) = answer["workers"][0]["endpoints"]
        assert not endpoint["answers"] and endpoint["reason"].startswith('engine "Model"')
        assert Scrape().get("worker_ready_workers") == 0.0
        model.free.set()
        answer = await says(worker.metrics_address, "/ready", 200)
        assert answer["workers"][0]["endpoints"][0]["answers"]
        assert Scrape().get("worker_ready_workers") == 1.0


async def test_a_loop_that_is_blocked_is_named_while_it_is():
    async with hr.serve(echo, metrics=ANY, ping_interval=0.2) as worker:
        address = worker.metrics_address
        assert address is not None
        await says(address, "/live", 200)
        before = Scrape()
        seen = threading.Event()
        answers: list[str] = []

        def watch() -> None:
            while not seen.is_set():
                status, body = fetch(address, "/live")
                blocked = Scrape(fetch(address, "/metrics")[1]).get("loop_blocked_seconds")
                if status == 503 and blocked > 0.2:
                    answers.extend((body, fetch(address, "/ready")[1]))
                    seen.set()

        watching = asyncio.ensure_future(asyncio.to_thread(watch))
        await asyncio.sleep(0)
        # Nothing of this loop turns until the port has told so.
        assert await asyncio.shield(_blocked_until(seen))
        await watching
        for answer in answers:
            assert "the event loop of thread MainThread has had no turn for" in answer
        await says(address, "/live", 200)
        await says(address, "/ready", 200)
        await eventually(lambda: Scrape().rise(before, "loop_lag_seconds_sum") > 0.2)
        await eventually(lambda: Scrape().get("loop_blocked_seconds") < 0.2)


@pytest.mark.parametrize("closed", [False, True], ids=["stopped", "closed"])
async def test_a_loop_that_was_left_is_not_blocked(closed: bool):
    async with hr.serve(echo, metrics=ANY, ping_interval=0.2) as worker:
        left: list[Any] = []

        def leave() -> None:
            loop = asyncio.new_event_loop()

            async def uses() -> None:
                router = hr.Router(worker.address)
                assert await router.call("hello") == "hello"
                left.extend((loop, router, current_hub()))

            loop.run_until_complete(uses())
            if closed:
                loop.close()

        await asyncio.to_thread(leave)
        loop, _, hub = left
        # It has been asked for a turn that it will not have: this loop has had two since.
        before = Scrape()
        await eventually(lambda: Scrape().rise(before, "loop_lag_seconds_count") >= 2.0)
        await eventually(lambda: Scrape().get("loop_blocked_seconds") < 0.2)
        await says(worker.metrics_address, "/live", 200)
        await says(worker.metrics_address, "/ready", 200)
        if closed:
            # The next loop lets go of it.
            await asyncio.to_thread(lambda: asyncio.run(_with_hub()))
            assert hub.closed
        else:
            loop.close()


async def _with_hub() -> None:
    current_hub()


STOPPED = """
import asyncio, sys
import headrace as hr

async def opens():
    return await hr.serve(echo, metrics="127.0.0.1:0", ping_interval=0.2)

async def echo(request):
    return request

async def blocks():
    sys.stdin.readline()

loop = asyncio.new_event_loop()
worker = loop.run_until_complete(opens())
print(worker.metrics_address, flush=True)
sys.stdin.readline()
loop.run_until_complete(blocks())
print("unblocked", flush=True)
sys.stdin.readline()
"""


async def steadily_live(address: str) -> bool:
    """Whether `/live` says so for as long as it takes to ask the loops twice."""
    for _ in range(12):
        if (await get(address, "/live"))[0] != 200:
            return False
        await asyncio.sleep(0.1)
    return True


@pytest.mark.any_loop
async def test_the_only_loop_of_a_process_is_not_blocked_while_it_is_stopped():
    with python("-c", STOPPED, stdin=subprocess.PIPE) as process:
        address = await process.line()
        tells = process.popen.stdin
        assert tells is not None
        # It has just been stopped: for a moment nobody knows.
        while not await steadily_live(address):
            pass
        assert Scrape((await get(address, "/metrics"))[1]).get("loop_blocked_seconds") == 0.0
        tells.write("run again\n")
        tells.flush()
        await says(address, "/live", 503, "the event loop of thread MainThread has had no turn for")
        tells.write("go on\n")
        tells.flush()
        assert await process.line() == "unblocked"
        while not await steadily_live(address):
            pass
        assert (await process.ended())[0] == 0


async def _blocked_until(event: threading.Event) -> bool:
    return event.wait(GUARD)


async def test_a_closed_worker_leaves_no_port_and_a_failed_one_opens_none():
    async with hr.serve(echo, metrics=ANY) as holder:
        taken = holder.address
        with pytest.raises(OSError, match="cannot listen on"):
            await hr.serve(echo, taken, metrics=ANY)
        address = holder.metrics_address
        await holder.aclose()
        assert holder.metrics_address is None
        with pytest.raises(OSError):
            await get(address, "/live")


LISTENS = re.compile(r"headrace: metrics and health at (\S+)")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(WORKERS)}


@pytest.mark.any_loop
async def test_the_command_serves_and_tells():
    with python("-m", "headrace", "serve", "cli_engines:gated", "--metrics", ANY, env=ENVIRONMENT) as process:
        ready = await process.error_line()
        found = LISTENS.match(line := await process.error_line())
        assert found, line
        async with routing(ready.split(" on ")[1].split(" (")[0]) as router:
            assert await (await router.generate("go on")).collect() == ["before", "after"]
        status, text = await get(found[1], "/metrics")
        assert (status, Scrape(text).get("worker_requests_total", endpoint="gated")) == (200, 1.0)
        process.signal(signal.SIGTERM)
        code, _, _ = await process.ended()
        assert code == 0


async def ups(address: str) -> list[float]:
    scrape = Scrape((await get(address, "/metrics"))[1])
    return [scrape.get("worker_process_up", worker_process=str(number)) for number in range(2)]


@pytest.mark.any_loop
async def test_worker_processes_are_one_scrape_and_one_that_is_gone_or_frozen_shows():
    options = ("--metrics", ANY, "--drain-timeout", "1")
    async with serve_pool("pool_engines:who", "pool_engines:block", *options) as pool:
        found = LISTENS.match(line := await pool.next_line())
        assert found, line
        address = found[1]
        await pool.ready(2)
        await says(address, "/ready", 200)
        await says(address, "/live", 200)
        async with hr.Router(pool.addresses) as router:
            await router.wait_for_instances(2)
            for each in pool.addresses:
                for _ in range(3):
                    await router.call("hello", endpoint="who", instance=each)
            scrape = Scrape((await get(address, "/metrics"))[1])
            for number in ("0", "1"):
                labels = {"endpoint": "who", "worker_process": number}
                assert scrape.get("worker_requests_total", **labels) == 3.0
                assert scrape.get("worker_request_duration_seconds_count", **labels) == 3.0
            assert await ups(address) == [1.0, 1.0]

            # One that is stopped does not answer, and one that goes on is well again.
            os.kill(pool.workers[1].pid, signal.SIGSTOP)
            answer = await says(address, "/live", 503, "worker process 1: it does not answer")
            assert [each["up"] for each in answer["worker_processes"]] == [True, False]
            assert await ups(address) == [1.0, 0.0]
            assert json.loads((await get(address, "/ready"))[1])["ready"]
            os.kill(pool.workers[1].pid, signal.SIGCONT)
            await says(address, "/live", 200)

            # One that is killed is missing until it is back.
            os.kill(pool.workers[0].pid, signal.SIGKILL)
            await pool.ready()
            await says(address, "/live", 200)
            scrape = Scrape((await get(address, "/metrics"))[1])
            assert await ups(address) == [1.0, 1.0]
            assert scrape.get("worker_requests_total", endpoint="who", worker_process="0") == 0.0
            assert scrape.get("worker_requests_total", endpoint="who", worker_process="1") == 3.0
        pool.signal(signal.SIGTERM)
        code, _, _ = await pool.ended()
        assert code == 0
        with pytest.raises(OSError):
            await get(address, "/live")


@pytest.mark.any_loop
async def test_a_port_of_a_parent_that_cannot_be_opened_ends_it_before_it_starts():
    async with hr.serve(echo, metrics=ANY) as worker:
        assert worker.metrics_address is not None
        async with serve_pool("pool_engines:who", "--metrics", worker.metrics_address) as pool:
            code, _, err = await pool.ended()
            assert code == 2 and "metrics: cannot listen on" in err


@pytest.mark.any_loop
async def test_the_folder_of_a_parent_that_was_killed_is_removed_by_the_next_one(tmp_path: Path):
    env = {"TMPDIR": str(tmp_path)}
    others = tmp_path / "headrace-metrics-not-a-folder"
    others.touch()
    async with serve_pool("pool_engines:who", "--metrics", ANY, env=env) as pool:
        await pool.ready(2)
        [left] = set(os.listdir(tmp_path)) - {others.name}
        assert sorted(os.listdir(tmp_path / left)) == ["0", "1"]
        # The folder of one that runs is left alone.
        async with serve_pool("pool_engines:who", "--metrics", ANY, env=env) as another:
            await another.ready(2)
            assert len(os.listdir(tmp_path)) == 3
            another.signal(signal.SIGTERM)
            assert (await another.ended())[0] == 0
        assert set(os.listdir(tmp_path)) == {left, others.name}
        pool.signal(signal.SIGKILL)
        await pool.ended()
    assert left in os.listdir(tmp_path)
    async with serve_pool("pool_engines:who", "--metrics", ANY, env=env) as pool:
        await pool.ready(2)
        assert left not in os.listdir(tmp_path)
        pool.signal(signal.SIGTERM)
        assert (await pool.ended())[0] == 0
    assert os.listdir(tmp_path) == [others.name]
