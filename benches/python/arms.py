"""The arms: which there are, what each can do, and the two verbs that loads use them by.

An arm is a module with `connect(address)` and, unless it lives in one process, `serve(engines)`,
both async context managers. It is imported only where it runs, because imports are part of what
S7 measures, and because Headrace may not be installed.
"""

import importlib
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, cast


class Client(Protocol):
    """How a load reaches the engines."""

    def call(self, endpoint: str, request: object) -> Awaitable[Any]:
        """Await a unary engine's answer."""
        ...

    def generate(self, endpoint: str, request: object) -> Awaitable[AsyncIterator[Any]]:
        """Await the stream of a streaming engine's items."""
        ...


class ArmModule(Protocol):
    """What an arm's module offers."""

    def connect(self, address: str) -> AbstractAsyncContextManager[Client]:
        """Stay connected while entered."""
        ...

    def serve(self, engines: Mapping[str, Callable[[Any], Any]]) -> AbstractAsyncContextManager[str]:
        """Serve while entered; gives the address."""
        ...


@dataclass(frozen=True)
class Arm:
    """One way to reach the engines."""

    name: str
    module: str
    requires: str | None = None
    has_server: bool = True

    def load(self) -> ArmModule:
        """Import the arm."""
        return cast(ArmModule, importlib.import_module(self.module))

    def is_installed(self) -> bool:
        """Say whether the package that the arm is about can be found."""
        return self.requires is None or importlib.util.find_spec(self.requires) is not None


ARMS = {
    arm.name: arm
    for arm in (
        Arm("inprocess", "inprocess", has_server=False),
        Arm("floor", "floor"),
        Arm("floor-bursts", "floor_bursts"),
        Arm("headrace", "headrace_arm", requires="headrace"),
    )
}
DEFAULT_ARMS = ("inprocess", "floor", "headrace")
