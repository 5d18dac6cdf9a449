"""A stream whose worker is killed after any token, or after every one, equals the whole answer. Each token of
the engine depends on all before it, so one that is lost, doubled or changed changes all that follow.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import headrace as hr
import pytest

from pool import gone
from support import GUARD, python, routing
from support import WORKERS as FOLDER

pytestmark = pytest.mark.asyncio

PROMPT = [17, 4, 1961]
TOKENS = 24
REQUEST = {"said": PROMPT, "length": len(PROMPT) + TOKENS}


def rest(request: dict[str, Any], items: list[int]) -> dict[str, Any]:
    """The prompt with the tokens so far behind it."""
    return {**request, "said": [*request["said"], *items], "wait": None}


class Workers:
    """Worker processes, and a router to all of them."""

    def __init__(self, router: hr.Router, pids: dict[str, int]) -> None:
        self.router = router
        self._pids = pids

    def kill(self, stream: Any) -> None:
        """SIGKILL for the worker that answers."""
        [address] = [
            each.address for each in self.router.instances() if each.instance_id == stream.instance_id
        ]
        os.kill(self._pids[address], signal.SIGKILL)

    async def whole(self) -> list[int]:
        """The answer without a loss."""
        return await (await self.router.generate(REQUEST)).collect()


@contextlib.asynccontextmanager
async def token_workers(count: int) -> AsyncIterator[Workers]:
    with python(str(FOLDER / "tokens.py"), str(count)) as process:
        lines = [(await process.line()).split() for _ in range(count)]
        pids = {address: int(pid) for address, pid in lines}
        async with routing(list(pids)) as router:  # type: ignore[arg-type]
            await router.wait_for_instances(count, timeout=GUARD)
            yield Workers(router, pids)
        process.end()
        await gone(pids.values())


async def test_a_stream_whose_reader_has_any_number_of_tokens_when_its_worker_is_killed():
    async with token_workers(TOKENS + 2) as workers:
        whole = await workers.whole()
        assert len(set(whole)) > TOKENS / 2, "tokens that are all the same would show nothing"
        for read in range(TOKENS + 1):
            request = {**REQUEST, "wait": len(PROMPT) + read}
            stream = await workers.router.generate(request, resume=rest)
            items = [await anext(stream) for _ in range(read)]
            workers.kill(stream)
            items += await stream.collect()
            assert (read, items) == (read, whole)
            assert stream.resumed == 1


async def test_a_stream_whose_engine_kills_its_process_behind_any_token(tmp_path):
    """What has left the worker by then is up to the sockets, and nobody waits for it."""
    async with token_workers(TOKENS + 2) as workers:
        whole = await workers.whole()
        for made in range(TOKENS + 1):
            died = tmp_path / str(made)
            request = {**REQUEST, "die": len(PROMPT) + made, "died": str(died)}
            stream = await workers.router.generate(request, resume=rest)
            assert (made, await stream.collect()) == (made, whole)
            assert died.exists()
            # Where nothing of the answer had come, it is the same request that runs again.
            assert stream.resumed <= 1
            assert workers.router.stats()["retries_total"] == made + 1


async def test_a_stream_whose_worker_is_killed_after_every_token():
    def next_one(request: dict[str, Any], items: list[int]) -> dict[str, Any]:
        said = [*request["said"], *items]
        return {**request, "said": said, "wait": len(said) + 1}

    async with token_workers(TOKENS + 2) as workers:
        whole = await workers.whole()
        request = {**REQUEST, "wait": len(PROMPT) + 1}
        stream = await workers.router.generate(request, resume=next_one)
        used = set()
        items = []
        async for item in stream:
            items.append(item)
            used.add(stream.instance_id)
            workers.kill(stream)
        assert items == whole
        assert stream.resumed == len(used) == TOKENS
