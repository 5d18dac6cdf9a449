"""Engines that are checked while silent, and workers that are passed over when one does not answer."""

import asyncio
from typing import Any

import headrace as hr
import pytest

from support import eventually, routing, serving, worker_process

pytestmark = pytest.mark.asyncio

QUICK = {"health_interval": 0.05, "health_timeout": 0.15}


class Model:
    """Answers while it is not stuck."""

    health_check = "ping"

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()
        self.checks = 0

    async def generate(self, request: Any, ctx: hr.Context) -> Any:
        if request == "ping":
            assert ctx.id == "health-check"
            self.checks += 1
        await self.free.wait()
        yield "one"
        if request == "two":
            await self.free.wait()
            yield "two"


def state(router: hr.Router, worker: hr.Worker) -> str | None:
    """How the router sees the worker."""
    by_id = {instance.instance_id: instance.state for instance in router.instances()}
    return by_id.get(worker.instance_id)


async def test_a_worker_whose_engine_is_stuck_is_passed_over_and_its_streams_live_on():
    stuck, sound = Model(), Model()
    async with hr.serve(stuck, **QUICK) as one, hr.serve(sound, **QUICK) as two:
        async with hr.Router([one.address, two.address]) as router:
            await router.wait_for_instances(2)
            stream = await router.generate("two", instance=one.instance_id)
            assert await anext(stream) == "one"
            stuck.free.clear()
            held = await router.generate("two", instance=one.instance_id)
            await eventually(lambda: state(router, one) == "unready")
            assert not one.ready and two.ready
            assert one.unready_reason is not None
            assert one.unready_reason.startswith('engine "Model" has answered nobody for 0.200 s')
            for _ in range(10):
                assert (await router.generate("hello")).instance_id == two.instance_id
            assert router.stats()["links"] == 2
            stuck.free.set()
            assert await stream.collect() == ["two"]
            assert await held.collect() == ["one", "two"]
            await eventually(lambda: state(router, one) == "up")
            assert one.ready and one.unready_reason is None
            assert await (await router.generate("hello", instance=one.instance_id)).collect() == ["one"]


async def test_checks_are_nobodys_requests():
    model = Model()
    async with serving(model, **QUICK) as (worker, router):
        assert await (await router.generate("hello")).collect() == ["one"]
        await eventually(lambda: model.checks >= 3)
        assert worker.stats()["accepted_total"] == worker.stats()["links"] == 1
    await eventually(lambda: worker.stats()["running"] == 0)


async def test_a_worker_with_a_check_drains_and_closes_at_once():
    model = Model()
    model.free.clear()
    worker = await hr.serve(model, health_interval=0.01, health_timeout=600, drain_timeout=600)
    await eventually(lambda: model.checks == 1)
    await asyncio.wait_for(worker.drain(), 20)
    assert worker.unready_reason == "it is draining"
    # The engine is told, as by any caller who leaves.
    await eventually(lambda: worker.stats()["running"] == 0)


@pytest.mark.any_loop
async def test_a_blocked_loop_makes_its_worker_not_ready():
    settings = ("health_interval=0.1", "health_timeout=0.2")
    async with worker_process("engines.py", *settings) as (_, address), routing(address) as router:
        stream = await router.generate({"seconds": 2}, endpoint="block")
        assert await anext(stream) == "blocking"
        # Told by a thread that needs no Python, while the worker's loop does not turn.
        await eventually(lambda: router.instances()[0].state == "unready")
        assert await stream.collect() == ["done"]
        await eventually(lambda: router.instances()[0].state == "up")
        assert await router.call(1, endpoint="echo") == 1


async def test_an_engine_that_raises_at_its_check_is_named_with_what_it_raised():
    async def broken(request):
        raise RuntimeError("no device")

    async with hr.serve(
        {"a": Model(), "b": broken}, health_check={"b": None, "a": "ping"}, **QUICK
    ) as worker:
        # `None` is no check, so nobody asks.
        assert worker.ready
    async with hr.serve({"a": Model(), "b": broken}, health_check={"b": 1}, **QUICK) as worker:
        await eventually(lambda: not worker.ready)
        assert worker.unready_reason == 'engine "b" failed its health check: RuntimeError: no device'


async def test_a_synchronous_engine_is_checked_too():
    asked = []

    def double(request):
        asked.append(request)
        return 2 * request

    async with serving(double, health_check=21, **QUICK) as (worker, router):
        await eventually(lambda: len(asked) >= 2)
        assert worker.ready
        assert await router.call(4) == 8


async def test_a_check_is_what_the_engine_is_given():
    seen = []

    async def look(request):
        seen.append(request)

    check = {"text": "x", "numbers": [1, 2.5, None]}
    look.health_check = {"not": "this"}
    async with hr.serve(look, health_check=check, **QUICK):
        await eventually(lambda: seen)
    assert seen[0] == check


@pytest.mark.parametrize("checked", [False, True])
async def test_false_switches_off_the_check_that_an_engine_declares(checked):
    model, other = Model(), Model()
    given = {} if checked else {"health_check": False}
    async with hr.serve({"model": model}, **QUICK, **given), hr.serve(other, **QUICK):
        await eventually(lambda: other.checks >= 3)
    assert (model.checks > 0) == checked


async def refuses(request):
    return None


async def only_streams(requests: "hr.RequestStream"):
    return None


class Checker(Model):
    def health_check(self):  # type: ignore[override]
        return True


@pytest.mark.parametrize(
    ("engine", "check", "error", "says"),
    [
        ({"a": refuses}, 1, ValueError, "dictionary of endpoint names"),
        ({"a": refuses}, {"b": 1}, ValueError, "names 'b'"),
        (only_streams, 1, ValueError, "only streams of requests"),
        (refuses, object(), TypeError, "object"),
        (refuses, lambda: 1, TypeError, "not a function"),
        (Checker, None, TypeError, "health_check=False"),
    ],
)
async def test_a_check_that_cannot_be_one_is_refused_when_serving_begins(engine, check, error, says):
    with pytest.raises(error, match=says):
        hr.serve(engine, health_check=check)
    async with hr.serve(engine, health_check=False):
        pass
