"""NVIDIA Dynamo's runtime, as its documentation says: TCP request plane, discovery by files.

Handlers take `(request, context)` and are async generators, unary ones too. A call takes the first
item and lets go of its stream: `dynamo.runtime.UnaryClient` waits for the end as well, which costs a
third more, and seven milliseconds on the QUIC response plane. Items are asked for bare
(`annotated=False`). One client is made for each endpoint, on its first use.

Dynamo tells an engine of a cancellation by its context alone. The handler of `never_ending`, the
engine that faults are tried on, therefore waits for the context too and cancels the engine; the
others are spared that. A caller's cancellation has to be passed on with `stop_generating`.

The server's limit of requests at work, 10,000 by default, is raised as Headrace's is: `idle` holds
more, and what is over the limit would wait for ever behind streams that do not end.

The store lies in TMPDIR, which the runner gives each run anew. The log is set to warnings; a line
for each request is written nevertheless, whatever `DYN_LOG` says.
"""

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

os.environ.update(
    DYN_FILE_KV=os.path.join(os.environ.get("TMPDIR", "/tmp"), "dynamo"),
    DYN_TCP_RPC_HOST="127.0.0.1",
    DYN_TCP_RESPONSE_STREAM_HOST="127.0.0.1",
    DYN_TCP_WORKER_POOL_SIZE="20000",
    DYN_LOG="warn",
)

from dynamo.runtime import Context, DistributedRuntime

COMPONENT = "bench"

# How often the server looks whether its endpoints are registered: `serve_endpoint` does not say.
LOOK_S = 0.01


def pull_handler(engine: Callable[[Any], Any]) -> Any:
    """Return the handler that runs an engine, and is asked for each item."""

    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        yield await engine(request)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async for item in engine(request):
            yield item

    async def cancellable(request: Any, context: Any) -> AsyncIterator[Any]:
        items = engine(request)
        stopped = asyncio.ensure_future(context.async_killed_or_stopped())
        while True:
            item = asyncio.ensure_future(anext(items))
            await asyncio.wait((item, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not item.done():
                item.cancel()
                return
            yield item.result()

    if engine.__name__ == "never_ending":
        return cancellable
    return stream if inspect.isasyncgenfunction(engine) else answer


class Client:
    """The harness's two verbs on one runtime."""

    def __init__(self, runtime: Any, namespace: str) -> None:
        """Call what is registered in `namespace`."""
        self._runtime = runtime
        self._namespace = namespace
        self._clients: dict[str, Any] = {}

    async def call(self, endpoint: str, request: object) -> Any:
        """Call a unary engine."""
        client = self._clients.get(endpoint) or await self._client(endpoint)
        return await anext(await client.generate(request, annotated=False))

    async def generate(self, endpoint: str, request: object) -> AsyncIterator[Any]:
        """Call a streaming engine."""
        client = self._clients.get(endpoint) or await self._client(endpoint)
        context = Context()
        stream = await client.generate(request, annotated=False, context=context)
        return self._items(stream, context)

    async def _items(self, stream: Any, context: Any) -> AsyncIterator[Any]:
        """Yield the items; a reader that leaves stops the engine."""
        try:
            async for item in stream:
                yield item
        except BaseException:
            context.stop_generating()
            raise

    async def _client(self, endpoint: str) -> Any:
        """Make the client of one endpoint, and wait until it can be called."""
        client = await self._runtime.endpoint(f"{self._namespace}.{COMPONENT}.{endpoint}").client()
        await client.wait_for_instances()
        return self._clients.setdefault(endpoint, client)


def new_runtime(response_plane: str | None) -> Any:
    """Return a runtime on this loop."""
    loop = asyncio.get_running_loop()
    return DistributedRuntime(loop, "file", "tcp", response_plane=response_plane)


@asynccontextmanager
async def serve(
    engines: Mapping[str, Callable[[Any], Any]],
    response_plane: str | None = None,
    handler: Callable[[Callable[[Any], Any]], Any] = pull_handler,
) -> AsyncIterator[str]:
    """Serve while entered; gives the namespace that the endpoints are registered in."""
    namespace = f"worker{os.getpid()}"
    runtime = new_runtime(response_plane)
    serving = [
        asyncio.ensure_future(
            runtime.endpoint(f"{namespace}.{COMPONENT}.{name}").serve_endpoint(
                handler(engine), graceful_shutdown=False
            )
        )
        for name, engine in engines.items()
    ]
    await _registered(namespace, len(engines))
    yield namespace
    runtime.shutdown()
    await asyncio.wait(serving, timeout=1)


async def _registered(namespace: str, count: int) -> None:
    """Wait until the store has all of a worker's endpoints."""
    instances = os.path.join(os.environ["DYN_FILE_KV"], "v1", "instances")
    while True:
        with suppress(FileNotFoundError):
            present = os.listdir(instances)
            if sum(name.startswith(f"{namespace}%2F") for name in present) == count:
                return
        await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def connect(address: str, response_plane: str | None = None) -> AsyncIterator[Client]:
    """Keep a runtime to call a serving process with while entered."""
    runtime = new_runtime(response_plane)
    yield Client(runtime, address)
    runtime.shutdown()
