"""Which worker a call goes to."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import headrace as hr
import pytest

from support import eventually, idle

pytestmark = pytest.mark.asyncio


@contextlib.asynccontextmanager
async def several(count: int, **settings: Any) -> AsyncIterator[tuple[list[hr.Worker], hr.Router]]:
    """So many workers whose engine says which of them it is, or hangs, and a router to all of them."""
    async with contextlib.AsyncExitStack() as stack:
        workers: list[hr.Worker] = []

        def engine(number: int) -> Any:
            async def which(request):
                yield number
                if request == "hang":
                    await asyncio.Event().wait()

            return which

        for number in range(count):
            workers.append(await stack.enter_async_context(hr.serve({"which": engine(number)})))
        router = hr.Router([each.address for each in workers], **settings)
        async with router:
            await router.wait_for_instances(count)
            yield workers, router
            await eventually(lambda: idle(*workers, router))


async def picks(router: hr.Router, times: int, **call: Any) -> Counter[int]:
    return Counter([await router.call(None, **call) for _ in range(times)])


async def test_round_robin_takes_turns():
    async with several(3, policy="round_robin") as (_, router):
        assert await picks(router, 30) == {0: 10, 1: 10, 2: 10}


@pytest.mark.parametrize("policy", ["p2c", "random", "hash"])
async def test_every_worker_is_used(policy):
    async with several(3, policy=policy) as (_, router):
        counts: Counter[int] = Counter()
        while len(counts) < 3:
            counts += await picks(router, 20)


async def test_least_loaded_fills_evenly():
    async with several(4, policy="least_loaded") as (workers, router):
        streams = [await router.generate("hang") for _ in range(40)]
        assert [each.stats()["running"] for each in workers] == [10] * 4
        for stream in streams:
            await stream.aclose()


@pytest.mark.parametrize("policy", ["hash", "p2c"])
async def test_the_same_affinity_goes_to_the_same_worker(policy):
    async with several(4, policy=policy) as (_, router):
        places = {}
        for key in map(str, range(40)):
            [(places[key], times)] = (await picks(router, 5, affinity=key)).items()
            assert times == 5
        assert set(places.values()) == {0, 1, 2, 3}


async def test_losing_a_worker_moves_only_its_affinities():
    async with several(4) as (workers, router):
        keys = [str(key) for key in range(60)]
        before = {key: await router.call(None, affinity=key) for key in keys}
        await workers[2].aclose()
        await eventually(lambda: router.instances()[2].state == "down")
        after = {key: await router.call(None, affinity=key) for key in keys}
        assert all(after[key] == place for key, place in before.items() if place != 2)
        assert all(place != 2 for place in after.values())


async def test_a_call_names_its_worker_with_direct():
    async with several(3, policy="direct") as (workers, router):
        for number, worker in enumerate(workers):
            assert await router.call(None, instance=worker.instance_id) == number
            assert await router.call(None, instance=worker.address) == number
        with pytest.raises(hr.HeadraceError, match="names no instance="):
            await router.call(None)


async def test_a_function_picks():
    seen: list[list[hr.Instance]] = []

    def last(instances: list[hr.Instance]) -> hr.Instance:
        seen.append(instances)
        return instances[-1]

    async with several(3, policy=last) as (workers, router):
        assert await picks(router, 5) == {2: 5}
        assert [each.instance_id for each in seen[0]] == [each.instance_id for each in workers]
        assert {each.state for each in seen[0]} == {"up"}
        async with await router.generate("hang") as stream:
            await anext(stream)
            await router.call(None)
            assert [each.in_flight for each in seen[-1]] == [0, 0, 1]


async def test_a_function_that_fails_fails_its_call_alone():
    def broken(instances: list[hr.Instance]) -> hr.Instance:
        raise KeyError("no such zone")

    async with several(2, policy=broken) as (_, router):
        with pytest.raises(hr.HeadraceError, match="KeyError: 'no such zone'"):
            await router.call(None)
        assert router.stats()["in_flight"] == 0


async def test_a_function_that_returns_something_else_is_told_so():
    async with several(2, policy=lambda instances: "the first") as (_, router):
        with pytest.raises(hr.HeadraceError, match="'the first', which is none of the instances"):
            await router.call(None)


async def test_an_unknown_policy_is_refused_by_name():
    with pytest.raises(ValueError, match=r'least_loaded.*not "fastest"'):
        hr.Router("127.0.0.1:1", policy="fastest")  # type: ignore[arg-type]
