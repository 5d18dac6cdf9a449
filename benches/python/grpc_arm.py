"""gRPC for asyncio, as its documentation says: one channel, one aio server, generic handlers.

Generic handlers with msgspec as serializer stand where generated code would: the same path through
the library, without protobuf's own cost. Message size limits are off, as 1 MiB echoes and a margin
need it. Everything else is the default; larger HTTP/2 frames and look-ahead did not speed up 1 MiB
echoes. gRPC switches Nagle's algorithm off itself. Its library is loaded with the loop already
running on uvloop, which it supports.

Cancelling a task that reads a call cancels the call, and that cancels the handler's task.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import msgspec

SERVICE = "bench"
OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


def handler(engine: Callable[[Any], Any]) -> Any:
    """Return the RPC method that runs an engine."""

    async def answer(request: Any, context: Any) -> Any:
        return await engine(request)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async for item in engine(request):
            yield item

    if inspect.isasyncgenfunction(engine):
        return grpc.unary_stream_rpc_method_handler(
            stream, request_deserializer=decode, response_serializer=encode
        )
    return grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=decode, response_serializer=encode
    )


class Client:
    """The harness's two verbs on one channel, with a callable for each method made once."""

    def __init__(self, channel: Any) -> None:
        """Call through `channel`."""
        self._channel = channel
        self._unary: dict[str, Any] = {}
        self._streaming: dict[str, Any] = {}

    def call(self, endpoint: str, request: object) -> Any:
        """Call a unary method."""
        method = self._unary.get(endpoint)
        if method is None:
            method = self._unary[endpoint] = self._channel.unary_unary(
                f"/{SERVICE}/{endpoint}", request_serializer=encode, response_deserializer=decode
            )
        return method(request)

    async def generate(self, endpoint: str, request: object) -> AsyncIterator[Any]:
        """Call a streaming method."""
        method = self._streaming.get(endpoint)
        if method is None:
            method = self._streaming[endpoint] = self._channel.unary_stream(
                f"/{SERVICE}/{endpoint}", request_serializer=encode, response_deserializer=decode
            )
        return method(request)


@asynccontextmanager
async def serve(engines: Mapping[str, Callable[[Any], Any]]) -> AsyncIterator[str]:
    """Serve on a free loopback port while entered; gives the address."""
    server = grpc.aio.server(options=OPTIONS)
    methods = {name: handler(engine) for name, engine in engines.items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(grace=None)


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Client]:
    """Keep a channel to a serving process while entered."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        yield Client(channel)
