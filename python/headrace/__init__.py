"""Headrace: call a Python engine in another process from asyncio and read its answers as a stream."""

from headrace._headrace import Call, Context, RequestStream, ResponseStream, UnaryCall, __version__
from headrace._running import run
from headrace.errors import (
    AuthenticationError,
    CannotConnect,
    DeadlineExceeded,
    Disconnected,
    EngineError,
    ForkError,
    HeadraceError,
    ItemTimeout,
    NoInstances,
    NoSuchEndpoint,
    NotUnary,
    Overloaded,
    PayloadTooLarge,
    ProtocolError,
    SlowConsumer,
    VersionMismatch,
)
from headrace.router import Instance, Router
from headrace.worker import Worker, serve

__all__ = [
    "serve",
    "run",
    "Worker",
    "Router",
    "Instance",
    "Call",
    "UnaryCall",
    "ResponseStream",
    "Context",
    "RequestStream",
    "HeadraceError",
    "CannotConnect",
    "Disconnected",
    "NoInstances",
    "NoSuchEndpoint",
    "NotUnary",
    "Overloaded",
    "DeadlineExceeded",
    "ItemTimeout",
    "SlowConsumer",
    "PayloadTooLarge",
    "ProtocolError",
    "VersionMismatch",
    "AuthenticationError",
    "EngineError",
    "ForkError",
    "__version__",
]
