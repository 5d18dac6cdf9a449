"""Headrace, used as its documentation says, with its defaults wherever a scenario allows."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import headrace

# Above the 10,000 streams that `idle` holds open. One value for all scenarios, so that none is
# run on settings of its own.
CONCURRENCY = 20_000

# Scenarios end with streams still open; nothing is gained by waiting for them.
DRAIN_TIMEOUT_S = 0.5


class Client:
    """The harness's two verbs, in Headrace's words."""

    def __init__(self, router: headrace.Router) -> None:
        """Call through `router`."""
        self._router = router

    def call(self, endpoint: str, request: object) -> Awaitable[Any]:
        """Call a unary engine."""
        return self._router.call(request, endpoint=endpoint)

    def generate(self, endpoint: str, request: object) -> Awaitable[AsyncIterator[Any]]:
        """Call a streaming engine."""
        return self._router.generate(request, endpoint=endpoint)


@asynccontextmanager
async def serve(engines: Mapping[str, Callable[[Any], Any]]) -> AsyncIterator[str]:
    """Serve on a free loopback port while entered; gives the address."""
    async with headrace.serve(
        dict(engines), "127.0.0.1:0", concurrency=CONCURRENCY, drain_timeout=DRAIN_TIMEOUT_S
    ) as worker:
        yield worker.address


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Client]:
    """Route to a serving process while entered."""
    async with headrace.Router(address) as router:
        yield Client(router)
