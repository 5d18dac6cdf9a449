"""What the metrics say after runs of which everything is known. They are the process's, so tests look at what
they rose by.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

import headrace as hr
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from scrapes import Scrape, assert_rose, at_rest
from support import eventually, serving

pytestmark = pytest.mark.asyncio


async def engine(request: Any, ctx: hr.Context) -> Any:
    """Does what it is asked."""
    match request:
        case ["items", count]:
            for _ in range(count):
                yield b"12345678"
        case ["raise", count]:
            for number in range(count):
                yield number
            raise ValueError("as asked")
        case ["unencodable"]:
            yield object()
        case ["large"]:
            yield bytes(100_000)
        case ["stop"]:
            yield "first"
            await ctx.stopped()
        case ["wait"]:
            yield "first"
            await asyncio.Event().wait()


async def fails(router: hr.Router, request: Any, kind: type[Exception], **options: Any) -> None:
    with pytest.raises(kind):
        await (await router.generate(request, **options)).collect()


async def test_everything_is_counted_once_and_a_cancelled_call_is_no_error():
    async with serving(engine, max_message_bytes=64_000) as (_, router):
        await router.wait_for_instances(1)
        before = Scrape()
        assert len(await (await router.generate(["items", 5])).collect()) == 5
        await fails(router, ["raise", 0], hr.EngineError)
        await fails(router, ["raise", 3], hr.EngineError)
        await fails(router, ["unencodable"], hr.EngineError)
        await fails(router, ["large"], hr.PayloadTooLarge)
        async with router.generate(["wait"]) as stream:
            assert await anext(stream) == "first"
        async with router.generate(["stop"]) as stream:
            assert await anext(stream) == "first"
            stream.stop()
            assert await stream.collect() == []
        await fails(router, ["wait"], hr.DeadlineExceeded, timeout=0.05)
        await at_rest(before, "worker_request_duration_seconds_count", 8.0, endpoint="engine")
        assert_rose(
            before,
            {
                "worker_requests_total": 8.0,
                "worker_request_duration_seconds_count": 8.0,
                "worker_queue_seconds_count": 8.0,
                "worker_errors_total:generate": 2.0,
                "worker_errors_total:serialization": 1.0,
                "worker_errors_total:too_large": 1.0,
                "worker_errors_total:deadline": 1.0,
                "worker_errors_total:publish_response": 0.0,
                "worker_errors_total:publish_final": 0.0,
                "worker_cancellation_total": 1.0,
                # Five, three, and the first of three streams.
                "worker_response_items_total": 11.0,
                "worker_time_to_first_response_seconds_count": 5.0,
                "worker_inflight_requests": 0.0,
                "worker_queued_requests": 0.0,
            },
            endpoint="engine",
        )
        assert_rose(
            before,
            {
                "router_requests_total": 8.0,
                "router_queue_seconds_count": 8.0,
                "router_send_seconds_count": 8.0,
                "router_roundtrip_ttft_seconds_count": 5.0,
                "router_errors_total:engine": 3.0,
                "router_errors_total:payload_too_large": 1.0,
                "router_errors_total:deadline": 1.0,
                "router_cancellation_total": 1.0,
                "router_inflight_requests": 0.0,
                "router_waiting_requests": 0.0,
            },
        )


async def strict(request: int) -> int:
    return request


def synchronous(request: Any) -> Any:
    return request


async def total(request: Any, ctx: hr.Context) -> int:
    return sum([len(item) async for item in ctx.requests])


async def test_bytes_of_requests_and_answers_are_those_of_their_payloads():
    async with serving({"synchronous": synchronous, "total": total}) as (_, router):
        before = Scrape()
        for size in (10, 20_000, 100_000):
            assert await router.call(bytes(size), endpoint="synchronous") == bytes(size)
        sizes = {"worker_request_bytes_total": 120_010.0, "worker_response_bytes_total": 120_010.0}
        assert_rose(before, {**sizes, "worker_response_items_total": 3.0}, endpoint="synchronous")

        async def parts() -> Any:
            for _ in range(3):
                yield bytes(1_000)

        assert await router.call(parts(), endpoint="total") == 3_000
        assert_rose(before, {"worker_request_bytes_total": 3_000.0}, endpoint="total")


async def test_a_request_that_cannot_be_decoded_is_counted_as_that():
    async with serving(strict, request_type=int) as (_, router):
        before = Scrape()
        with pytest.raises(hr.EngineError):
            await router.call("no number")
        assert_rose(before, {"worker_errors_total:deserialization": 1.0}, endpoint="strict")


async def test_what_waits_and_what_is_refused():
    free = asyncio.Event()

    async def gated(request: Any) -> Any:
        await free.wait()
        return request

    async with serving(gated, concurrency=1, queue=1, router={"retries": 0}) as (worker, router):
        before = Scrape()
        running = asyncio.ensure_future(router.call(1))
        await eventually(lambda: worker.stats()["running"] == 1)
        waiting = asyncio.ensure_future(router.call(2))
        await eventually(lambda: worker.stats()["queued"] == 1)
        with pytest.raises(hr.Overloaded):
            await router.call(3)
        now = Scrape()
        assert now.get("worker_inflight_requests", endpoint="gated") == 1.0
        assert now.get("worker_queued_requests", endpoint="gated") == 1.0
        assert now.get("router_inflight_requests") == 2.0
        assert now.get("link_open_streams", side="worker") == 2.0
        free.set()
        assert await asyncio.gather(running, waiting) == [1, 2]
        assert_rose(before, {"worker_rejections_total:overloaded": 1.0}, endpoint="gated")
        assert_rose(
            before,
            {
                "worker_requests_total": 2.0,
                "worker_queue_seconds_count": 2.0,
                "worker_inflight_requests": 0.0,
            },
            endpoint="gated",
        )


async def test_a_retry_is_counted_by_its_reason():
    free = asyncio.Event()

    async def gated(request: Any) -> Any:
        await free.wait()
        return request

    async with hr.serve({"any": gated}, concurrency=1, queue=0) as full, hr.serve({"any": strict}) as other:
        async with hr.Router([full.address, other.address], policy="round_robin") as router:
            await router.wait_for_instances(2)
            held = asyncio.ensure_future(router.call(0, instance=full.instance_id))
            await eventually(lambda: full.stats()["running"] == 1)
            before = Scrape()
            assert [await router.call(number) for number in range(4)] == list(range(4))
            # Each refusal of the full worker was one more attempt, and nobody else refused.
            refused = Scrape().rise(before, "worker_rejections_total", endpoint="any", reason="overloaded")
            assert refused >= 1.0
            assert_rose(
                before,
                {
                    "router_requests_total": 4.0,
                    "router_retries_total:overloaded": refused,
                    "router_retries_total:draining": 0.0,
                    "router_errors_total:overloaded": 0.0,
                },
            )
            assert full.stats()["rejected_total"] == refused
            free.set()
            assert await held == 0


async def test_a_batcher_is_counted_by_its_name_also_when_it_is_gone():
    release = asyncio.Event()

    async def double(items: list[int]) -> list[Any]:
        await release.wait()
        return [ValueError("odd one") if item == 13 else 2 * item for item in items]

    name = "doubling"
    before = Scrape()
    async with hr.Batcher(double, name=name, max_batch_size=4, queue_capacity=4) as batcher:
        taken = [asyncio.ensure_future(batcher.submit(item)) for item in (1, 2, 3, 13)]
        await eventually(lambda: Scrape().get("batch_dispatched_items", batcher=name) == 4.0)
        waits = [asyncio.ensure_future(batcher.submit(item)) for item in (4, 5, 6, 7)]
        await eventually(lambda: Scrape().get("batch_queued_items", batcher=name) == 4.0)
        with pytest.raises(hr.Rejected):
            await batcher.submit(8)
        # A task that is cancelled before its first step does not wait for its item yet.
        await asyncio.sleep(0)
        waits[0].cancel()
        await eventually(lambda: Scrape().rise(before, "batch_cancelled_total", batcher=name) == 1.0)
        with pytest.raises(hr.Expired):
            await batcher.submit(9, timeout=0.02)
        release.set()
        results = await asyncio.gather(*taken, *waits, return_exceptions=True)
        assert results[:3] == [2, 4, 6] and results[5:] == [10, 12, 14]
    del batcher, taken, waits
    expected = {
        "batch_submitted_total": 10.0,
        "batch_completed_total": 6.0,
        "batch_failed_total": 1.0,
        "batch_cancelled_total": 1.0,
        "batch_expired_total": 1.0,
        "batch_rejected_total:queue_full": 1.0,
        "batch_size_count": 2.0,
        "batch_size_sum": 7.0,
        "batch_fill_ratio_sum": 1.75,
        "batch_execution_seconds_count": 2.0,
        "batch_formation_seconds_count": 2.0,
        "batch_queue_wait_seconds_count": 7.0,
        "batch_queued_items": 0.0,
        "batch_dispatched_items": 0.0,
        "batch_inflight_batches": 0.0,
    }
    assert_rose(before, expected, batcher=name)
    now = Scrape()
    reasons = {labels for series, labels in now.series if series == "headrace_batch_batches_total"}
    batches = sum(now.rise(before, "batch_batches_total", **dict(labels)) for labels in reasons)
    assert batches == 2.0
    # Another one of that name goes on where it was.
    async with hr.Batcher(double, name=name) as again:
        assert await again.submit(1) == 2
    assert_rose(before, {"batch_submitted_total": 11.0, "batch_completed_total": 7.0}, batcher=name)


async def test_each_histogram_has_as_many_values_as_there_were_requests():
    async with serving({"strict": strict, "synchronous": synchronous}) as (_, router):
        await asyncio.gather(*(router.call(1, endpoint=name) for name in ("strict", "synchronous") * 20))
    now = Scrape()
    endpoints = {
        dict(labels)["endpoint"] for name, labels in now.series if name.endswith("worker_requests_total")
    }
    assert {"strict", "synchronous"} <= endpoints
    for endpoint in endpoints:
        requests = now.get("worker_requests_total", endpoint=endpoint)
        assert now.get("worker_request_duration_seconds_count", endpoint=endpoint) == requests
        assert now.get("worker_queue_seconds_count", endpoint=endpoint) == requests
        assert now.get("worker_request_duration_seconds_bucket", endpoint=endpoint, le="+Inf") == requests


async def test_nothing_that_callers_choose_becomes_a_label():
    async with serving({"strict": strict, "synchronous": synchronous}) as (_, router):
        await router.call(0, endpoint="strict")
        before = Scrape()
        for number in range(50):
            await router.call(
                number,
                endpoint="strict",
                request_id=f"hostile-{number}",
                metadata={f"hostile-{number}": "hostile"},
                affinity=f"hostile-{number}",
            )
            with pytest.raises(hr.NoSuchEndpoint):
                await router.call(number, endpoint=f"hostile-{number}")
        now = Scrape()
        assert "hostile" not in now.text
        assert now.series.keys() == before.series.keys()


async def test_scraping_under_load_changes_nothing():
    done = threading.Event()
    scrapes: list[Scrape] = []

    def scrape() -> None:
        while not done.is_set():
            scrapes.append(Scrape())

    async with serving(engine) as (_, router):
        before = Scrape()
        scraping = asyncio.ensure_future(asyncio.to_thread(scrape))
        for _ in range(10):
            streams = await asyncio.gather(*(router.generate(["items", 200]) for _ in range(10)))
            answers = await asyncio.gather(*(stream.collect() for stream in streams))
            assert all(len(answer) == 200 for answer in answers)
        await eventually(lambda: scrapes)
        done.set()
        await scraping
    assert_rose(
        before,
        {
            "worker_requests_total": 100.0,
            "worker_response_items_total": 20_000.0,
            "worker_response_bytes_total": 160_000.0,
            "worker_request_duration_seconds_count": 100.0,
        },
        endpoint="engine",
    )
    for one, other in itertools.pairwise(scrapes):
        assert other.rise(one, "worker_requests_total", endpoint="engine") >= 0.0


async def test_an_application_that_has_a_registry_registers_a_collector():
    async with serving(strict) as (_, router):
        await router.call(1)
    registry = CollectorRegistry()
    registry.register(hr.metrics.collector())
    theirs, ours = Scrape(generate_latest(registry).decode()), Scrape()
    assert theirs.families.keys() == ours.families.keys()
    moving = ("headrace_loop", "headrace_link_")
    same = [series for series in ours.series if not series[0].startswith(moving)]
    assert [theirs.series[series] for series in same] == [ours.series[series] for series in same]
    for name, family in ours.families.items():
        assert (family.type, family.documentation) == (
            theirs.families[name].type,
            theirs.families[name].documentation,
        )


async def test_every_family_says_what_it_is():
    families = Scrape().families.values()
    assert len(families) > 40
    for family in families:
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge", "histogram")
