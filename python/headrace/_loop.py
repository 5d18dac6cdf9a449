"""One hub per running event loop: found by identity, made at first use, closed before its loop is."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import weakref
from collections.abc import AsyncGenerator

from headrace import _headrace
from headrace._headrace import LoopHub

_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopHub] = weakref.WeakKeyDictionary()
_sentinels: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = (
    weakref.WeakKeyDictionary()
)


def current_hub() -> LoopHub:
    """The hub of the running loop.

    Raises:
        RuntimeError: no loop is running in this thread.
        ForkError: this process was forked after Headrace had started.
    """
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        _forget_closed()
        hub = LoopHub.start(loop)
        _hubs[loop] = hub
        _close_before(loop, hub)
    return hub


def _forget_closed() -> None:
    """Let go of the loops that have ended: a hub holds its loop, so their entries would keep each other.

    What they still had open is closed too: their runner may have closed them without a word.
    """
    for loop in [loop for loop in _hubs if loop.is_closed()]:
        hub = _hubs.pop(loop, None)
        _sentinels.pop(loop, None)
        if hub is not None:
            hub.close()


def _close_before(loop: asyncio.AbstractEventLoop, hub: LoopHub) -> None:
    """Have the hub closed before its loop is.

    ``asyncio.run`` and every other careful runner call ``loop.shutdown_asyncgens`` before they close the
    loop, which closes this generator while the loop still turns.
    """

    async def sentinel() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            hub.close()

    generator = sentinel()
    _sentinels[loop] = generator
    step = generator.__anext__()
    with contextlib.suppress(StopIteration):
        step.send(None)


def _close_all() -> None:
    for hub in list(_hubs.values()):
        hub.close()
    _headrace._exit()  # pyright: ignore[reportPrivateUsage]


atexit.register(_close_all)
os.register_at_fork(after_in_child=_headrace._forked)  # pyright: ignore[reportPrivateUsage]
