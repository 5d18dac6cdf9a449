"""The engine and its consumer on one loop, with nothing between them.

What this arm costs is what Python costs; what another arm costs beyond it is transport.
"""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from engines import ENGINES


class Client:
    """Calls the engines of this process."""

    def call(self, endpoint: str, request: object) -> Awaitable[Any]:
        """Return the engine's coroutine."""
        return ENGINES[endpoint](request)

    async def generate(self, endpoint: str, request: object) -> AsyncIterator[Any]:
        """Return the engine's generator."""
        return ENGINES[endpoint](request)


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Client]:
    """Give a client; the address is not used, for there is no server."""
    yield Client()
