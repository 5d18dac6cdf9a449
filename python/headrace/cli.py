"""The command ``headrace``. ``headrace serve module:engine`` serves an engine until it is told to stop."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import headrace


class UsageError(Exception):
    """The command line cannot be followed; the message says why."""


def load(name: str) -> Any:
    """The object that ``"module:attribute"`` names.

    Raises:
        UsageError: there is no such module or attribute.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{name!r} does not name an engine: write module:engine")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise UsageError(f"there is no module {error.name!r} here or on sys.path") from None
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise UsageError(f"module {module_name!r} has no {attribute!r}") from None
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headrace", description=headrace.__doc__)
    parser.add_argument("--version", action="version", version=f"headrace {headrace.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve engines until SIGTERM or Ctrl-C, then drain",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    serve.add_argument(
        "engines",
        nargs="+",
        metavar="[ENDPOINT=]MODULE:ENGINE",
        help="what to serve; the endpoint's name is the engine's unless given",
    )
    serve.add_argument("--address", default="127.0.0.1:0", help="host:port or unix:/path")
    serve.add_argument("--namespace", default="default", help="routers of another one are refused")
    serve.add_argument("--concurrency", type=int, default=64, help="requests that run at once")
    serve.add_argument("--queue", type=int, default=64, help="requests that wait for a place")
    serve.add_argument(
        "--drain-timeout", type=float, default=30.0, metavar="SECONDS", help="how long a drain waits"
    )
    serve.add_argument(
        "--max-message-bytes", type=int, default=32 * 1024 * 1024, help="largest request and item"
    )
    serve.add_argument("--token-file", metavar="PATH", help="routers must present the token in this file")
    serve.add_argument(
        "--expose-tracebacks", action="store_true", help="tell callers the tracebacks of engines"
    )
    serve.add_argument(
        "--insecure", action="store_true", help="allow addresses off loopback, without encryption"
    )
    return parser


def _engines(names: Sequence[str]) -> Any:
    engines: dict[str, Any] = {}
    for name in names:
        endpoint, equals, target = name.rpartition("=")
        engine = load(target)
        if not equals and len(names) == 1:
            return engine
        endpoint = endpoint if equals else target.rpartition(":")[2]
        if endpoint in engines:
            raise UsageError(f"endpoint {endpoint!r} is given twice")
        engines[endpoint] = engine
    return engines


def _token(path: str | None) -> str | None:
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        headrace.run(
            _engines(options.engines),
            options.address,
            namespace=options.namespace,
            concurrency=options.concurrency,
            queue=options.queue,
            drain_timeout=options.drain_timeout,
            max_message_bytes=options.max_message_bytes,
            token=_token(options.token_file),
            expose_tracebacks=options.expose_tracebacks,
            insecure=options.insecure,
        )
    except (UsageError, ValueError, TypeError, OSError) as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 2
    return 0
