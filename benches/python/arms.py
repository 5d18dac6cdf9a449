"""The arms: which there are, what each can do, and the two verbs that loads use them by.

An arm is a module with `connect(address)` and, unless it lives in one process, `serve(engines)`,
both async context managers. It is imported only where it runs, because imports are part of what
S7 measures, and because what it is about may not be installed, or only in another environment.
"""

import importlib
import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import environments


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
    """One way to reach the engines.

    `requires` names a package of the runner's own environment, `environment` one of `peers/`. An arm
    does all scenarios but those it `lacks`; benches/README.md says why each is missing. `share` is
    how much of a load's repetition it does, so that the slowest arm does not set how long all take.
    """

    name: str
    module: str
    requires: str | None = None
    environment: str | None = None
    has_server: bool = True
    lacks: frozenset[str] = frozenset()
    share: float = 1.0

    def load(self) -> ArmModule:
        """Import the arm."""
        return cast(ArmModule, importlib.import_module(self.module))

    @property
    def part(self) -> str:
        """Return the name by which this arm's own processes know what to do."""
        return self.name

    @property
    def python(self) -> str:
        """Return the interpreter that this arm's processes run in."""
        return str(environments.python(self.environment)) if self.environment else sys.executable

    def command(self, script: str) -> list[str]:
        """Return the command that runs one of this folder's scripts for this arm.

        An arm that is not Python replaces it by a program that takes the same arguments, and
        prints the same lines, as `client.py`, `first_response.py` and `server.py` do.
        """
        return [self.python, str(Path(__file__).parent / script)]

    def missing(self) -> str | None:
        """Return what has to be installed before this arm can run, if anything has to be."""
        if self.environment is not None and not environments.is_installed(self.environment):
            return f"environment {self.environment} (peers.py install {self.environment})"
        if self.requires is not None and importlib.util.find_spec(self.requires) is None:
            return f"package {self.requires} for {sys.executable}"
        return None

    def is_installed(self) -> bool:
        """Say whether all that this arm needs is there."""
        return self.missing() is None


@dataclass(frozen=True)
class BuildArm(Arm):
    """Headrace as the environment of another `interpreter` has it: an earlier build beside this one."""

    interpreter: str = ""

    @property
    def part(self) -> str:
        """Return the arm that the processes play."""
        return "headrace"

    @property
    def python(self) -> str:
        """Return the other interpreter."""
        return self.interpreter

    def missing(self) -> str | None:
        """Return the interpreter, if it is not there."""
        return None if Path(self.interpreter).is_file() else self.interpreter


def other_build(text: str) -> BuildArm:
    """Return the arm for `NAME=PYTHON`, a name for a build and the interpreter that has it installed."""
    name, equals, interpreter = text.partition("=")
    if not (name and equals and interpreter):
        raise ValueError(f"{text}: it takes NAME=PYTHON")
    return BuildArm(f"headrace-{name}", "headrace_arm", interpreter=interpreter)


class NativeArm(Arm):
    """An arm whose both sides are `benches/rust/native`."""

    PROGRAM = Path(__file__).parents[2] / "target" / "release" / "native"

    def command(self, script: str) -> list[str]:
        """Return the command that plays the part of one of this folder's scripts."""
        return [str(self.PROGRAM), script.removesuffix(".py")]

    def missing(self) -> str | None:
        """Return what has to be built."""
        if self.PROGRAM.exists():
            return None
        return f"{self.PROGRAM} (cargo build --release -p headrace-benches --bin native)"


_NO_FAULTS = frozenset({"cancel", "kill"})
_NATIVE_LACKS = frozenset({"S3", "S4", "S5", "S5b", "S7", "idle"}) | _NO_FAULTS

ARMS = {
    arm.name: arm
    for arm in (
        Arm("inprocess", "inprocess", has_server=False, lacks=frozenset({"S6", "kill"})),
        Arm("floor", "floor", lacks=_NO_FAULTS),
        Arm("floor-bursts", "floor_bursts", lacks=_NO_FAULTS),
        Arm("headrace", "headrace_arm", requires="headrace"),
        Arm("streams", "streams_arm", lacks=frozenset({"cancel"}), share=0.25),
        Arm("zmq-item", "zmq_item_arm", environment="zmq", lacks=_NO_FAULTS, share=0.25),
        Arm("zmq-step", "zmq_step_arm", environment="zmq", lacks=_NO_FAULTS, share=0.25),
        Arm("grpc", "grpc_arm", environment="grpc", share=0.1),
        Arm("aiohttp", "aiohttp_arm", environment="aiohttp", share=0.1),
        Arm("dynamo", "dynamo_arm", environment="dynamo", share=0.1),
        Arm("dynamo-quic", "dynamo_quic_arm", environment="dynamo", share=0.1),
        Arm("dynamo-sender", "dynamo_sender_arm", environment="dynamo", share=0.1),
        NativeArm("native", "native", lacks=_NATIVE_LACKS),
        NativeArm("native-gathered", "native", lacks=_NATIVE_LACKS),
    )
}
DEFAULT_ARMS = ("inprocess", "floor", "headrace")
