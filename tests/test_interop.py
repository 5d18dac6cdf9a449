"""Workers and routers in Rust and in Python speak the same protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import headrace as hr
import pytest

from support import Process, echo_requests, routing, serving

EXAMPLES = os.environ.get("HEADRACE_RUST_EXAMPLES")

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(not EXAMPLES, reason="INTEROP WAS NOT TESTED: HEADRACE_RUST_EXAMPLES names no folder"),
]


def rust(name: str, *arguments: str) -> Process:
    program = Path(EXAMPLES or "") / name
    assert program.exists(), f"{program} is not built"
    return Process([str(program), *arguments])


@contextlib.asynccontextmanager
async def rust_worker(*arguments: str) -> AsyncIterator[tuple[Process, str]]:
    process = rust("rust_worker", *arguments)
    try:
        yield process, await process.line()
    finally:
        process.end()


async def rust_client(address: str, endpoint: str, *texts: str) -> tuple[int, str, str]:
    process = rust("rust_client", address, endpoint, *texts)
    try:
        return await process.ended()
    finally:
        process.end()


async def words(request):
    for word in request.split():
        yield word


async def fail(request):
    yield request
    raise LookupError("no such water")


async def test_a_rust_client_reads_a_python_worker():
    async with serving({"words": words, "fail": fail}) as (worker, _):
        text = "to be or not"
        assert await rust_client(worker.address, "words", text) == (0, "to\nbe\nor\nnot\n", "")
        assert await rust_client(worker.address, "words", "") == (0, "", "")
        code, out, err = await rust_client(worker.address, "fail", "x")
        assert (code, out) == (1, "x\n")
        assert "LookupError: no such water" in err
        code, out, err = await rust_client(worker.address, "none", "x")
        assert (code, out) == (1, "")
        assert "fail, words" in err


async def test_a_rust_client_streams_its_request_to_a_python_worker():
    async def count(items: AsyncIterator[bytes]):
        async for item in items:
            yield str(len(item)).encode()

    async with serving({"echo": echo_requests, "count": count, "words": words}) as (worker, _):
        texts = [str(number) for number in range(500)]
        expected = "".join(f"{text}\n" for text in texts)
        assert await rust_client(worker.address, "echo", *texts) == (0, expected, "")
        assert await rust_client(worker.address, "count", "a", "bcd") == (0, "1\n3\n", "")
        code, _, err = await rust_client(worker.address, "words", "a", "b")
        assert code == 1
        assert "takes a single request" in err


async def test_many_rust_clients_read_a_python_worker():
    async with serving(words) as (worker, _):
        text = " ".join(map(str, range(3000)))
        answers = await asyncio.gather(*(rust_client(worker.address, "words", text) for _ in range(4)))
        assert answers == [(0, text.replace(" ", "\n") + "\n", "")] * 4


@pytest.mark.parametrize("where", ["tcp", "unix"])
async def test_a_python_router_reads_a_rust_worker(where, tmp_path):
    given = "127.0.0.1:0" if where == "tcp" else f"unix:{tmp_path}/rust"
    async with rust_worker(given) as (_, address), routing(address) as router:
        stream = await router.generate(b"to be or not", endpoint="words")
        assert await stream.collect() == [b"to", b"be", b"or", b"not"]
        assert await (await router.generate(b"", endpoint="words")).collect() == []
        stream = await router.generate(b"x", endpoint="fail")
        assert await anext(stream) == b"x"
        with pytest.raises(hr.EngineError, match="ExampleError") as caught:
            await anext(stream)
        assert caught.value.engine_type == "ExampleError"
        with pytest.raises(hr.NoSuchEndpoint) as missing:
            await router.generate(b"x", endpoint="none")
        assert missing.value.available == ["fail", "upper", "words"]
        large = b"word " * 400_000
        assert await (await router.generate(large, endpoint="words")).collect() == [b"word"] * 400_000


async def test_a_python_router_streams_its_request_to_a_rust_worker():
    async def text(count):
        for number in range(count):
            yield b"word %d" % number

    async with rust_worker() as (_, address), routing(address) as router:
        for count in (0, 1, 5000):
            stream = await router.generate(text(count), endpoint="upper")
            assert await stream.collect() == [b"WORD %d" % number for number in range(count)]
        with pytest.raises(hr.HeadraceError, match="takes one request, not a stream"):
            await router.generate(text(1), endpoint="words")


async def test_a_killed_rust_worker_is_disconnected():
    async with rust_worker() as (process, address), routing(address) as router:
        stream = await router.generate(b"w " * 200_000, endpoint="words")
        assert await anext(stream) == b"w"
        process.popen.kill()
        with pytest.raises(hr.Disconnected):
            async for _ in stream:
                pass
