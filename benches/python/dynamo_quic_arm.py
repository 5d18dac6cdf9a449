"""Dynamo with its QUIC response plane: one connection for all answers, where TCP opens one for each."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import dynamo_arm


def serve(engines: Mapping[str, Callable[[Any], Any]]) -> AbstractAsyncContextManager[str]:
    """Serve while entered; gives the namespace that the endpoints are registered in."""
    return dynamo_arm.serve(engines, response_plane="quic")


def connect(address: str) -> AbstractAsyncContextManager[dynamo_arm.Client]:
    """Keep a runtime to call a serving process with while entered."""
    return dynamo_arm.connect(address, response_plane="quic")
