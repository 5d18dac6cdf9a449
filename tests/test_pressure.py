"""Many streams on one link: who does not read holds up its own engine, and nobody else."""

from __future__ import annotations

import asyncio

import headrace as hr
import pytest

from support import eventually, serving

pytestmark = pytest.mark.asyncio

MIB = 1024 * 1024


class Flood:
    """Yields 8 KiB items; counts for each request how many it has yielded."""

    def __init__(self, items: int) -> None:
        self.items = items
        self.yielded: dict[int, int] = {}

    async def generate(self, request):
        for number in range(self.items):
            self.yielded[request] = number + 1
            yield bytes(8 * 1024)


async def settled(flood: Flood, streams: int) -> dict[int, int]:
    """What each engine has yielded, once none of them goes on."""
    seen: list[dict[int, int]] = []

    def unchanged() -> bool:
        seen.append(dict(flood.yielded))
        return len(flood.yielded) == streams and len(seen) > 25 and seen[-1] == seen[-25]

    await eventually(unchanged)
    return seen[-1]


async def test_64_consumers_that_stop_reading_hold_back_their_own_engines_and_nobody_else():
    flood = Flood(items=200)

    async def tokens(request):
        for number in range(200):
            yield number

    engines = {"flood": flood, "tokens": tokens}
    async with serving(engines, concurrency=100, router={"stream_window": 256 * 1024}) as (_, router):
        streams = [await router.generate(n, endpoint="flood") for n in range(64)]
        yielded = await settled(flood, 64)
        # 256 KiB of window and 64 KiB or so on the way: far fewer than the 200 items.
        assert max(yielded.values()) < 100
        assert min(yielded.values()) >= 30
        neighbour = await router.generate(None, endpoint="tokens")
        assert await neighbour.collect() == list(range(200))
        # One that reads on gets everything, the others stay where they are.
        assert len(await streams[0].collect()) == 200
        after = await settled(flood, 64)
        assert after[0] == 200
        assert {n: after[n] for n in range(1, 64)} == {n: yielded[n] for n in range(1, 64)}
        for stream in streams:
            stream.kill()


async def test_consumers_that_stopped_reading_can_go_on():
    flood = Flood(items=100)
    async with serving(flood, router={"stream_window": 64 * 1024}) as (_, router):
        streams = [await router.generate(n) for n in range(32)]
        await settled(flood, 32)
        for stream in streams:
            items = await stream.collect()
            assert len(items) == 100
            assert set(map(len, items)) == {8 * 1024}


async def test_a_24_mib_item_passes_beside_a_token_stream():
    begin = asyncio.Event()

    async def tensor(request):
        begin.set()
        yield bytes([7]) * (24 * MIB)

    async def tokens(request):
        await begin.wait()
        for number in range(300):
            yield number
            await asyncio.sleep(0)

    async with serving({"tensor": tensor, "tokens": tokens}) as (_, router):
        order = []

        async def read(endpoint: str) -> list[object]:
            items = []
            async for item in await router.generate(None, endpoint=endpoint):
                order.append(endpoint)
                items.append(item)
            return items

        small, large = await asyncio.gather(read("tokens"), read("tensor"))
        assert small == list(range(300))
        assert [len(item) for item in large] == [24 * MIB]
        assert large[0].count(7) == 24 * MIB
        # The tokens did not wait for all of the tensor.
        assert order.index("tensor") > 10


async def test_a_24_mib_request_passes_and_comes_back():
    async def echo(request):
        return request

    async with serving(echo) as (_, router):
        payload = bytes(range(256)) * (24 * MIB // 256)
        assert await router.call(payload) == payload


async def test_items_of_every_size_around_the_limits_of_frames_arrive_whole():
    sizes = [1, 100, 16_383, 16_384, 16_385, 65_000, 65_530, 65_535, 65_536, 65_537, 131_072, 200_000]

    async def yields(request):
        for size in sizes:
            yield bytes([size % 251]) * size
        for size in sizes:
            yield "x" * size

    async with serving(yields, router={"stream_window": 64 * 1024}) as (_, router):
        items = await (await router.generate(None)).collect()
        assert items[: len(sizes)] == [bytes([size % 251]) * size for size in sizes]
        assert items[len(sizes) :] == ["x" * size for size in sizes]


async def test_1000_streams_on_one_link():
    async def steps(request):
        for number in range(10):
            await asyncio.sleep(0)
            yield request * 10 + number

    async with serving(steps, concurrency=1000) as (worker, router):

        async def read(request: int) -> list[int]:
            return await (await router.generate(request)).collect()

        answers = await asyncio.gather(*(read(n) for n in range(1000)))
        assert answers == [list(range(n * 10, n * 10 + 10)) for n in range(1000)]
        assert worker.stats()["links"] == 1
        assert worker.stats()["accepted_total"] == 1000


async def test_1000_open_streams_are_killed_together():
    async def hangs(request):
        yield 1
        await asyncio.Event().wait()

    async with serving(hangs, concurrency=1000) as (worker, router):
        streams = await asyncio.gather(*(_open(router) for _ in range(1000)))
        assert worker.stats()["running"] == 1000
        assert router.stats()["streams"] == 1000
        del streams
        await eventually(lambda: worker.stats()["running"] == 0)


async def _open(router):
    stream = await router.generate(None)
    assert await anext(stream) == 1
    return stream


async def test_queued_requests_run_in_the_order_they_came():
    ran = []

    async def notes(request):
        ran.append(request)
        await asyncio.sleep(0)
        return request

    async with serving(notes, concurrency=2, queue=500) as (_, router):
        # Calls that find no worker yet wait for one, and those that come after it do not wait for them.
        await router.wait_for_instances()
        answers = await asyncio.gather(*(router.call(n) for n in range(300)))
        assert answers == list(range(300))
        assert ran == list(range(300))


async def test_more_answers_than_a_turn_of_the_loop_hands_out_come_in_order():
    count = 4_000
    order: list[int] = []

    async def same(numbers):
        return numbers

    async def wait_for(number):
        order.append(await batcher.submit(number))

    async with hr.Batcher(same, max_batch_size=count, queue_capacity=count) as batcher:
        batcher.pause()
        waits = [asyncio.ensure_future(wait_for(number)) for number in range(count)]
        await eventually(lambda: batcher.stats().queued == count)
        batcher.resume()
        await asyncio.gather(*waits)
    assert order == list(range(count))
