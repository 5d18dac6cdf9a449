"""Endpoints, overload, sizes and settings: what is refused is refused with a reason, before anything runs."""

from __future__ import annotations

import asyncio
import inspect
import time

import headrace as hr
import pytest

from support import Log, eventually, serving

pytestmark = pytest.mark.asyncio


async def echo(request):
    return request


async def count(request):
    for number in range(request):
        yield number


async def test_an_unknown_endpoint_lists_those_there_are():
    async with serving({"beta": echo, "alpha": count}) as (_, router):
        with pytest.raises(hr.NoSuchEndpoint, match=r"gamma.*alpha, beta") as caught:
            await router.generate(1, endpoint="gamma")
        assert caught.value.endpoint == "gamma"
        assert caught.value.available == ["alpha", "beta"]


async def test_an_endpoint_goes_to_the_worker_that_has_it_and_an_unknown_one_lists_those_of_all():
    async with (
        hr.serve({"beta": echo}) as one,
        hr.serve({"alpha": count}) as two,
        hr.Router([one.address, two.address], policy="round_robin") as router,
    ):
        await router.wait_for_instances(2)
        assert [await router.call(number, endpoint="beta") for number in range(6)] == list(range(6))
        with pytest.raises(hr.NoSuchEndpoint) as caught:
            await router.call(1, endpoint="gamma", request_id="r-1")
        assert (caught.value.endpoint, caught.value.available) == ("gamma", ["alpha", "beta"])
        # Both have told their endpoints, so nobody was asked.
        assert (caught.value.phase, caught.value.instance_id) == ("unsent", None)
        assert caught.value.request_id == "r-1"
        assert router.stats()["retries_total"] == 0


async def test_an_endpoint_left_out_is_the_only_one_or_an_error_that_lists_them():
    async with serving({"only": echo}) as (_, router):
        assert await router.call(1) == 1
    async with serving({"beta": echo, "alpha": count}) as (_, router):
        with pytest.raises(hr.NoSuchEndpoint, match=r"left out.*alpha, beta") as caught:
            await router.call(1)
        assert caught.value.endpoint == ""
        assert caught.value.available == ["alpha", "beta"]
        assert await router.call(1, endpoint="beta") == 1


async def test_overload_is_told_at_once_and_the_next_request_is_accepted():
    release = asyncio.Event()

    async def waits(request):
        await release.wait()
        return request

    async with serving(waits, concurrency=1, queue=1) as (worker, router):
        first = asyncio.ensure_future(router.call(1))
        second = asyncio.ensure_future(router.call(2))
        await eventually(lambda: worker.stats()["running"] + worker.stats()["queued"] == 2)
        with pytest.raises(hr.Overloaded, match=r"concurrency= or queue=") as caught:
            await router.call(3)
        assert caught.value.retry_after > 0
        assert caught.value.phase == "sent"
        assert caught.value.instance_id == worker.instance_id
        assert worker.stats()["rejected_total"] == 1
        release.set()
        assert await asyncio.gather(first, second) == [1, 2]
        assert await router.call(4) == 4
        assert worker.stats()["accepted_total"] == 3


async def test_overload_moves_a_call_to_another_worker():
    release = asyncio.Event()

    async def waits(request):
        await release.wait()
        return "first"

    async def second(request):
        return "second"

    async with (
        hr.serve({"e": waits}, concurrency=1, queue=0) as full,
        hr.serve({"e": second}) as free,
        hr.Router([full.address, free.address]) as router,
    ):
        await router.wait_for_instances(2)
        held = asyncio.ensure_future(router.call(None, instance=full.instance_id))
        await eventually(lambda: full.stats()["running"] == 1)
        answers = await asyncio.gather(*(router.call(None) for _ in range(20)))
        assert answers == ["second"] * 20
        with pytest.raises(hr.Overloaded):
            await router.call(None, instance=full.instance_id)
        release.set()
        assert await held == "first"


async def test_streams_per_link_bounds_the_streams_of_one_router():
    release = asyncio.Event()

    async def waits(request):
        await release.wait()

    async with serving(waits, streams_per_link=2) as (worker, router):
        held = [asyncio.ensure_future(router.call(None)) for _ in range(2)]
        await eventually(lambda: worker.stats()["running"] == 2)
        with pytest.raises(hr.Overloaded, match="streams"):
            await router.call(None)
        async with hr.Router(worker.address) as another:
            other = asyncio.ensure_future(another.call(None))
            await eventually(lambda: worker.stats()["running"] == 3)
            release.set()
            await asyncio.gather(other, *held)


async def test_a_request_over_the_limit_is_refused_before_it_is_sent():
    ran = Log()

    async def notes(request):
        ran.note(len(request))

    async with serving(notes, router={"max_message_bytes": 1000}) as (_, router):
        await router.call(bytes(900))
        with pytest.raises(hr.PayloadTooLarge, match="max_message_bytes=") as caught:
            await router.call(bytes(2000))
        assert caught.value.limit == 1000
        assert caught.value.actual >= 2000
        assert caught.value.setting == "max_message_bytes"
        assert caught.value.phase == "unsent"
        assert isinstance(caught.value, ValueError)
        assert ran == [900]


async def test_the_workers_limit_is_known_to_the_router():
    async with serving(echo, max_message_bytes=1000) as (_, router):
        with pytest.raises(hr.PayloadTooLarge) as caught:
            await router.call(bytes(2000))
        assert caught.value.limit == 1000
        assert caught.value.phase == "unsent"
        assert await router.call(bytes(500)) == bytes(500)


async def test_metadata_over_the_limit_is_refused_before_it_is_sent():
    async with serving(echo) as (_, router):
        with pytest.raises(hr.PayloadTooLarge, match="metadata") as caught:
            await router.call(None, metadata={"k": "v" * 200_000})
        assert caught.value.phase == "unsent"
        assert caught.value.limit == 128 * 1024
        assert await router.call(1, metadata={"k": "v" * 100_000}) == 1


@pytest.mark.parametrize("kind", ["asynchronous", "synchronous", "unary"])
@pytest.mark.parametrize("whose", ["worker", "router"])
async def test_an_item_over_the_limit_is_an_error_and_its_engine_is_stopped(whose, kind):
    log = Log()

    async def grows(request):
        try:
            yield bytes(100)
            yield bytes(20_000)
            log.note("went on")
        finally:
            log.note("closed")

    def grows_too(request):
        try:
            yield bytes(100)
            yield bytes(20_000)
            log.note("went on")
        finally:
            log.note("closed")

    async def large(request):
        log.note("closed")
        return bytes(20_000)

    engine = {"asynchronous": grows, "synchronous": grows_too, "unary": large}[kind]
    before = [] if kind == "unary" else [100]
    worker = {"max_message_bytes": 1000} if whose == "worker" else {}
    router = {"max_message_bytes": 1000} if whose == "router" else {}
    async with serving(engine, router=router, **worker) as (its_worker, its_router):
        items = []
        with pytest.raises(hr.PayloadTooLarge, match="max_message_bytes=") as caught:
            async for item in await its_router.generate(None):
                items.append(len(item))
        assert items == before
        error = caught.value
        assert (error.limit, error.actual, error.setting) == (1000, 20_000, "max_message_bytes")
        assert (error.phase, error.items) == ("streaming" if before else "accepted", len(before))
        assert error.instance_id == its_worker.instance_id
        await eventually(lambda: log == ["closed"])


async def test_an_item_of_exactly_the_limit_passes():
    async with serving(echo, max_message_bytes=100_000) as (_, router):
        assert len(await router.call(bytes(100_000))) == 100_000
        with pytest.raises(hr.PayloadTooLarge):
            await router.call(bytes(100_001))


async def test_the_defaults_are_those_that_are_promised():
    router = {
        "timeout": 600,
        "item_timeout": 60,
        "instance_timeout": 5,
        "retries": 2,
        "max_resume_bytes": 1024 * 1024,
        "slow_consumer_timeout": 60,
        "ping_interval": 5,
        "ping_timeout": 5,
        "max_message_bytes": 32 * 1024 * 1024,
        "policy": "p2c",
    }
    worker = {"concurrency": 64, "queue": 64, "drain_timeout": 30, "ping_interval": 5, "ping_timeout": 5}
    for function, promised in ((hr.Router, router), (hr.serve, worker)):
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in promised} == promised
    for function in (hr.Router.generate, hr.Router.call):
        assert inspect.signature(function).parameters["idempotent"].default is False


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("concurrency", 0),
        ("streams_per_link", 0),
        ("drain_timeout", -1),
        ("ping_interval", 0),
        ("ping_timeout", -1.0),
        ("health_interval", 0),
        ("health_timeout", -1.0),
        ("ping_interval", float("nan")),
        ("max_message_bytes", 0),
        ("max_message_bytes", 2**31),
        ("token", ""),
        ("concurrency", -1),
        ("queue", -1),
    ],
)
async def test_a_bad_setting_of_a_worker_is_a_value_error_that_names_it(setting, value):
    with pytest.raises(ValueError, match=setting):
        hr.serve(echo, **{setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", float("inf")),
        ("item_timeout", 0),
        ("instance_timeout", -1),
        ("stream_window", 1),
        ("link_window", 1),
        ("link_window", 2**31),
        ("ping_interval", 0),
        ("ping_timeout", 0),
        ("slow_consumer_timeout", 0),
        ("max_message_bytes", 0),
        ("policy", "best"),
        ("token", ""),
        ("retries", -1),
        ("stream_window", -1),
        ("stream_window", 2**40),
        ("max_message_bytes", -1),
    ],
)
async def test_a_bad_setting_of_a_router_is_a_value_error_that_names_it(setting, value):
    with pytest.raises(ValueError, match=setting):
        hr.Router("127.0.0.1:1", **{setting: value})


@pytest.mark.parametrize("value", [0, -1, float("nan")])
@pytest.mark.parametrize("setting", ["timeout", "item_timeout"])
async def test_a_bad_timeout_of_a_call_is_a_value_error_that_names_it(setting, value):
    async with serving(echo) as (_, router):
        with pytest.raises(ValueError, match=setting):
            router.call(None, **{setting: value})


@pytest.mark.parametrize("address", ["", "host", ":80", "127.0.0.1:x", "127.0.0.1:70000", "unix:"])
async def test_a_bad_address_is_a_value_error_that_shows_the_form(address):
    with pytest.raises(ValueError, match="host:port"):
        hr.serve(echo, address)
    with pytest.raises(ValueError, match="host:port"):
        hr.Router(address)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:7411", "[::]:0"])
async def test_an_address_off_loopback_needs_insecure(address):
    with pytest.raises(ValueError, match="insecure=True"):
        hr.serve(echo, address)
    with pytest.raises(ValueError, match="insecure=True"):
        hr.Router(address)


async def test_insecure_serves_off_loopback():
    async with hr.serve(echo, "0.0.0.0:0", insecure=True) as worker:
        port = worker.address.rpartition(":")[2]
        async with hr.Router(f"127.0.0.1:{port}") as router:
            assert await router.call(1) == 1


async def test_an_address_in_use_is_an_os_error():
    async with hr.serve(echo) as worker:
        with pytest.raises(OSError, match="cannot listen"):
            await hr.serve(echo, worker.address)


async def test_a_wrong_token_is_an_authentication_error():
    async with serving(echo, token="right", router={"token": "right"}) as (worker, router):
        assert await router.call(1) == 1
        for token in ("wrong", None):
            async with hr.Router(worker.address, token=token) as stranger:
                with pytest.raises(hr.AuthenticationError, match="token="):
                    await stranger.call(1)
        # A worker without a token does not mind one.
    async with serving(echo, router={"token": "any"}) as (_, router):
        assert await router.call(1) == 1


async def test_a_worker_of_another_version_is_a_version_mismatch_at_once():
    hello = bytes.fromhex(
        "4844524143450d0a 2c000000 01 00 000000000000 0900 0900 02 0000000000000000"
        "00000200 00010000 00004000 02 7731 07 64656661756c74 00 01 05 6772656574"
    )

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hello)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with hr.Router(f"{host}:{port}") as router:
            with pytest.raises(hr.VersionMismatch, match="upgrade") as caught:
                await router.call(1, idempotent=True)
            assert caught.value.phase == "unsent"
            assert router.stats()["retries_total"] == 0


async def test_another_namespace_is_refused():
    async with hr.serve(echo, namespace="blue") as worker:
        settings = {"namespace": "green", "instance_timeout": 0.5}
        async with hr.Router(worker.address, **settings) as router:
            with pytest.raises(hr.HeadraceError, match=r"blue|green|namespace"):
                await router.call(1)
        async with hr.Router(worker.address, namespace="blue") as router:
            assert await router.call(1) == 1


async def test_no_worker_is_cannot_connect_with_the_reason():
    async with hr.Router("127.0.0.1:1", instance_timeout=0.2) as router:
        with pytest.raises(hr.CannotConnect, match=r"127.0.0.1:1.*instance_timeout") as caught:
            await router.call(1)
        assert isinstance(caught.value, ConnectionError)
        assert (caught.value.phase, caught.value.instance_id) == ("unsent", None)
        with pytest.raises(TimeoutError, match=r"127.0.0.1:1"):
            await router.wait_for_instances(1, timeout=0.1)
        assert router.instances()[0].state == "down"


async def test_no_targets_is_no_instances():
    async with hr.Router([], instance_timeout=0.1) as router:
        began = time.monotonic()
        with pytest.raises(hr.NoInstances, match="instance_timeout") as caught:
            await router.call(1)
        assert time.monotonic() - began >= 0.1
        assert (caught.value.phase, caught.value.instance_id) == ("unsent", None)


async def test_an_unknown_instance_is_no_instances():
    async with serving(echo, router={"instance_timeout": 0.2}) as (worker, router):
        with pytest.raises(hr.NoInstances, match="nobody"):
            await router.call(1, instance="nobody")
        assert await router.call(1, instance=worker.instance_id) == 1
        assert await router.call(1, instance=worker.address) == 1


@pytest.mark.parametrize("policy", ["p2c", "round_robin"])
async def test_calls_are_spread_over_workers(policy):
    async def one(request):
        return 1

    async def two(request):
        return 2

    async with (
        hr.serve({"e": one}) as first,
        hr.serve({"e": two}) as second,
        hr.Router([first.address, second.address], policy=policy) as router,
    ):
        await router.wait_for_instances(2)
        answers = [await router.call(None) for _ in range(60)]
        assert set(answers) == {1, 2}
        if policy == "round_robin":
            assert answers.count(1) == 30
