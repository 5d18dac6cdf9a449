"""One client over many servers, for each arm in its own way.

Headrace's router does it by itself. For an arm that has no such thing there is a link to each server,
and calls take turns, which is the least that a caller of many servers has to do.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from typing import Any

from arms import ARMS, Client


class InTurn:
    """The harness's two verbs over several clients."""

    def __init__(self, clients: Sequence[Client]) -> None:
        """Begin with the first."""
        self._clients = cycle(clients)

    def call(self, endpoint: str, request: object) -> Awaitable[Any]:
        """Call through the next client."""
        return next(self._clients).call(endpoint, request)

    def generate(self, endpoint: str, request: object) -> Awaitable[AsyncIterator[Any]]:
        """Stream through the next client."""
        return next(self._clients).generate(endpoint, request)


@asynccontextmanager
async def connect_all(arm: str, addresses: Sequence[str]) -> AsyncIterator[Client]:
    """Stay connected to all servers while entered; every link is up when this yields."""
    if arm == "headrace":
        import headrace

        import headrace_arm

        async with headrace.Router(addresses) as router:
            await router.wait_for_instances(len(addresses))
            yield headrace_arm.Client(router)
    else:
        async with AsyncExitStack() as stack:
            module = ARMS[arm].load()
            clients = await asyncio.gather(
                *(stack.enter_async_context(module.connect(address)) for address in addresses)
            )
            yield InTurn(clients)
