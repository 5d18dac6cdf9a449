"""The command ``headrace``. ``headrace serve module:engine`` serves an engine until it is told to stop."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import headrace
from headrace._supervisor import WorkersFailed
from headrace._target import UsageError, loaded


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
    serve.add_argument(
        "--address",
        default="127.0.0.1:0",
        help="host:port or unix:/path; with several workers the first of as many ports, or unix:/path.0 and "
        "so on",
    )
    serve.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that serve, each at its own address"
    )
    serve.add_argument("--namespace", default="default", help="routers of another one are refused")
    serve.add_argument("--concurrency", type=int, default=64, help="requests that run at once")
    serve.add_argument("--queue", type=int, default=64, help="requests that wait for a place")
    serve.add_argument(
        "--drain-timeout", type=float, default=30.0, metavar="SECONDS", help="how long a drain waits"
    )
    serve.add_argument(
        "--max-message-bytes", type=int, default=32 * 1024 * 1024, help="largest request and item"
    )
    serve.add_argument(
        "--metrics",
        metavar="ADDRESS",
        help="host:port where /metrics, /live and /ready answer over HTTP, for all workers together",
    )
    serve.add_argument(
        "--metrics-label",
        action="append",
        dest="metrics_labels",
        metavar="KEY=VALUE",
        help="a label of all that the metrics tell of these workers and their endpoints; may be repeated",
    )
    serve.add_argument("--token-file", metavar="PATH", help="routers must present the token in this file")
    serve.add_argument(
        "--expose-tracebacks", action="store_true", help="tell callers the tracebacks of engines"
    )
    serve.add_argument(
        "--insecure", action="store_true", help="allow addresses off loopback, without encryption"
    )
    return parser


def _engines(names: Sequence[str]) -> str | dict[str, str]:
    if len(names) == 1 and "=" not in names[0]:
        return names[0]
    engines: dict[str, str] = {}
    for name in names:
        endpoint, equals, target = name.rpartition("=")
        endpoint = endpoint if equals else target.rpartition(":")[2]
        if endpoint in engines:
            raise UsageError(f"endpoint {endpoint!r} is given twice")
        engines[endpoint] = target
    return engines


def _labels(given: Sequence[str] | None) -> dict[str, str] | None:
    if given is None:
        return None
    labels: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise UsageError(f"--metrics-label {each!r} must be KEY=VALUE")
        if name in labels:
            raise UsageError(f"--metrics-label {name!r} is given twice")
        labels[name] = value
    return labels


def _token(path: str | None) -> str | None:
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    # What is here can be served, however this program was found.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        engines = _engines(options.engines)
        labels = _labels(options.metrics_labels)
        served = loaded(engines) if options.workers == 1 else engines
    except UsageError as error:
        return _refused(error)
    try:
        headrace.run(
            served,
            options.address,
            workers=options.workers,
            namespace=options.namespace,
            concurrency=options.concurrency,
            queue=options.queue,
            drain_timeout=options.drain_timeout,
            max_message_bytes=options.max_message_bytes,
            metrics=options.metrics,
            metrics_labels=labels,
            token=_token(options.token_file),
            expose_tracebacks=options.expose_tracebacks,
            insecure=options.insecure,
        )
    except (ValueError, TypeError, OSError) as error:
        return _refused(error)
    except WorkersFailed:
        # It was said when it happened.
        return 1
    return 0


def _refused(error: Exception) -> int:
    print(f"headrace: {error}", file=sys.stderr)
    return 2
