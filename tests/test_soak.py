"""Mixed calls while workers are closed and replaced: for some seconds in every run, for a minute or what
HEADRACE_SOAK_SECONDS says in `make soak`. Among what it protects: a link that was reset does not keep its
descriptor from the next link, which uvloop's closed poll handles once did.
"""

from __future__ import annotations

import asyncio
import os
import random
import time

import headrace as hr
import pytest

SECONDS = float(os.environ.get("HEADRACE_SOAK_SECONDS", "60"))
SHORT_SECONDS = 4.0
CALLERS = 32

pytestmark = pytest.mark.asyncio


async def numbers(request):
    for number in range(request["items"]):
        if request["pause"]:
            await asyncio.sleep(request["pause"])
        yield number


async def one_call(router: hr.Router, dice: random.Random) -> str:
    """One call of a random kind; says how it ended."""
    request = {"items": dice.randrange(50), "pause": dice.choice([0, 0, 0.001])}
    patience = dice.choice([None, None, 0.01])
    seen = 0
    try:
        async with asyncio.timeout(patience):
            async for number in router.generate(request, timeout=20):
                assert number == seen
                seen += 1
                if dice.random() < 0.01:
                    return "left"
    except hr.HeadraceError as error:
        return type(error).__name__
    except TimeoutError:
        return "cancelled"
    assert seen == request["items"], "a stream looked complete and was not"
    return "complete"


@pytest.mark.parametrize(
    ("seconds", "pause"),
    [(SHORT_SECONDS, 0.1), pytest.param(SECONDS, 1.0, marks=pytest.mark.soak)],
)
async def test_mixed_calls_go_on_while_workers_come_and_go(seconds, pause):
    addresses = []
    workers = []
    for _ in range(2):
        workers.append(await hr.serve(numbers, queue=256))
        addresses.append(workers[-1].address)
    dice = random.Random(7)
    endings: dict[str, int] = {}
    until = time.monotonic() + seconds

    async def caller(router: hr.Router, seed: int) -> None:
        own = random.Random(seed)
        while time.monotonic() < until:
            ending = await one_call(router, own)
            endings[ending] = endings.get(ending, 0) + 1

    async with hr.Router(addresses) as router:
        callers = [asyncio.ensure_future(caller(router, seed)) for seed in range(CALLERS)]
        while time.monotonic() < until:
            await asyncio.sleep(pause)
            index = dice.randrange(2)
            await workers[index].aclose()
            workers[index] = await hr.serve(numbers, addresses[index], queue=256)
        await asyncio.gather(*callers)
        assert router.stats()["in_flight"] == 0
    for worker in workers:
        await worker.aclose()
    assert endings.get("complete", 0) > CALLERS, endings
    assert set(endings) <= {"complete", "left", "cancelled", "Disconnected", "Overloaded"}, endings
