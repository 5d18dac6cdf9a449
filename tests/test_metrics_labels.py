"""Labels that owners give their workers: what carries them, which are refused, and that they arrive."""

from __future__ import annotations

import signal
from types import MappingProxyType
from typing import Any

import headrace as hr
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pool import serve_pool
from scrapes import Scrape, assert_rose, get
from support import python
from test_metrics_port import ANY, ENVIRONMENT, LISTENS

pytestmark = pytest.mark.asyncio


async def echo(request: Any) -> Any:
    return request


async def test_workers_of_one_endpoint_are_counted_apart_by_their_labels():
    red, blue = {"model": "red", "zone": 'é "b"\\\n'}, MappingProxyType({"model": "blue"})
    async with (
        hr.serve(echo, metrics=ANY, metrics_labels=red) as one,
        hr.serve(echo, metrics_labels=blue) as other,
        hr.serve(echo) as plain,
    ):
        before = Scrape()
        for worker, times in ((one, 1), (other, 2), (plain, 3)):
            async with hr.Router(worker.address) as router:
                for _ in range(times):
                    await router.call("hello")
        for labels, times in ((red, 1.0), (blue, 2.0), ({}, 3.0)):
            assert_rose(
                before,
                {
                    "worker_requests_total": times,
                    "worker_response_items_total": times,
                    "worker_request_duration_seconds_count": times,
                    "worker_errors_total:generate": 0.0,
                },
                endpoint="echo",
                **labels,
            )
            assert Scrape().get("worker_ready_workers", **labels) >= 1.0
        now = Scrape((await get(one.metrics_address, "/metrics"))[1])
        assert now.get("worker_requests_total", endpoint="echo", **blue) >= 2.0
        registry = CollectorRegistry()
        registry.register(hr.metrics.collector())
        collected = Scrape(generate_latest(registry).decode())
        assert collected.get("worker_requests_total", endpoint="echo", **red) >= 1.0
    assert Scrape().get("worker_ready_workers", **red) == 0.0


async def test_no_labels_and_an_empty_dictionary_are_the_same():
    before = Scrape()
    async with hr.serve(echo, metrics_labels={}) as worker, hr.Router(worker.address) as router:
        await router.call("hello")
    assert_rose(before, {"worker_requests_total": 1.0}, endpoint="echo")


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("labels", "error", "says"),
    [
        ({"my-model": "a"}, ValueError, 'metrics_labels: "my-model" is no name of a label'),
        ({"": "a"}, ValueError, 'metrics_labels: "" is no name of a label'),
        ({"__name__": "a"}, ValueError, 'metrics_labels: "__name__" is no name of a label'),
        ({"endpoint": "a"}, ValueError, 'metrics_labels: "endpoint" is a label that the metrics have'),
        ({"worker_process": "a"}, ValueError, '"worker_process" is a label that'),
        ({"le": "1"}, ValueError, '"le" is a label that'),
        ({"model": ""}, ValueError, 'metrics_labels: the value of "model" must have 1 to 128 bytes, not 0'),
        ({"model": "é" * 65}, ValueError, 'the value of "model" must have 1 to 128 bytes, not 130'),
        ({f"n{number}": "v" for number in range(9)}, ValueError, "there may be 8 labels, not 9"),
        ({"shard": 3}, TypeError, 'metrics_labels: the value of "shard" must be a str, not int'),
        ({3: "shard"}, TypeError, "metrics_labels: a label's name must be a str, not int"),
        ([("model", "a")], TypeError, "metrics_labels must be a dictionary of names and values, not list"),
    ],
)
async def test_labels_that_cannot_be_are_refused_by_name(labels: Any, error: type[Exception], says: str):
    with pytest.raises(error) as refused:
        hr.serve(echo, metrics_labels=labels)
    assert says in str(refused.value)


@pytest.mark.any_loop
async def test_worker_processes_carry_the_labels_that_the_command_was_given():
    options = ("--metrics", ANY, "--metrics-label", "model=a=b", "--metrics-label", "zone=c")
    async with serve_pool("pool_engines:who", *options) as pool:
        found = LISTENS.match(line := await pool.next_line())
        assert found, line
        await pool.ready(2)
        async with hr.Router(pool.addresses) as router:
            for each in pool.addresses:
                await router.call("hello", instance=each)
        scrape = Scrape((await get(found[1], "/metrics"))[1])
        for number in ("0", "1"):
            labels = {"worker_process": number, "model": "a=b", "zone": "c"}
            assert scrape.get("worker_requests_total", endpoint="who", **labels) == 1.0
            assert scrape.get("worker_ready_workers", **labels) == 1.0
        # What is not of a worker has none of them.
        assert scrape.get("link_opened_total", side="worker", worker_process="0") == 1.0
        pool.signal(signal.SIGTERM)
        assert (await pool.ended())[0] == 0


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("model",), "--metrics-label 'model' must be KEY=VALUE"),
        (("model=a", "model=b"), "--metrics-label 'model' is given twice"),
        (("side=a",), '"side" is a label that the metrics have already'),
    ],
)
async def test_the_command_refuses_labels_that_cannot_be(given: tuple[str, ...], says: str):
    options = [part for label in given for part in ("--metrics-label", label)]
    with python("-m", "headrace", "serve", "cli_engines:gated", *options, env=ENVIRONMENT) as process:
        code, _, err = await process.ended()
    assert code == 2
    assert says in err
