"""The parts of ``ResponseStream`` and ``RequestStream`` that are written in Python: they wait through the
stream's own ``__anext__``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from headrace._headrace import RequestStream, ResponseStream


async def chunks(stream: ResponseStream[Any] | RequestStream[Any]) -> AsyncIterator[list[Any]]:
    """Yield lists of the items that are ready, waiting only when there is none."""
    async for first in stream:
        ready = [first]
        try:
            stream._take_ready(ready)
        except Exception:
            # An item that does not fit its type; those before it do.
            yield ready
            raise
        yield ready


async def collect(stream: ResponseStream[Any] | RequestStream[Any]) -> list[Any]:
    """All items as one list."""
    items: list[Any] = []
    async for first in stream:
        items.append(first)
        stream._take_ready(items)
    return items
