"""An address for each worker process, kept for it from its first start through every restart.

A router keeps one link for each address, so worker processes cannot share one: they get consecutive ports,
or numbered socket files.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from types import TracebackType
from typing import Self

_UNIX = "unix:"
_PORT_MAX = 65_535


class Addresses:
    """The addresses of ``count`` worker processes. A context manager: they are held until it is left.

    Args:
        address: as for ``serve``. ``"host:0"`` gives each worker a free port, ``"host:port"`` the ports from
            that one on, ``"unix:/path"`` the paths ``/path.0``, ``/path.1`` and so on.
        count: how many.

    Raises:
        ValueError: there are not so many ports from that one on.
        OSError: a port is taken, or the host is unknown.
    """

    def __init__(self, address: str, count: int) -> None:
        self.each: list[str] = []
        self._held: list[socket.socket] = []
        if address.startswith(_UNIX):
            self.each = [f"{address}.{index}" for index in range(count)]
            return
        host, _, text = address.rpartition(":")
        first = int(text)
        if first + count - 1 > _PORT_MAX:
            raise ValueError(f"{address} is the first of {count} ports, and the last is {_PORT_MAX}")
        with contextlib.ExitStack() as undo:
            undo.callback(self._release)
            for index in range(count):
                held = _hold(host, first + index if first else 0)
                self._held.append(held)
                self.each.append(f"{host}:{held.getsockname()[1]}")
            undo.pop_all()

    def _release(self) -> None:
        for held in self._held:
            held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()
        for address in self.each:
            if address.startswith(_UNIX):
                _remove_stale(address.removeprefix(_UNIX))


def _hold(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen.

    With SO_REUSEADDR, which workers set too, Linux lets one of them listen on the same port, but gives the
    port to nobody who asks for any. Without it a port that the system chose could be gone when a crashed
    worker comes back for it.
    """
    plain = host.removeprefix("[").removesuffix("]")
    failure: OSError | None = None
    try:
        found = socket.getaddrinfo(plain, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(f"cannot resolve {host}:{port}: {error.strerror}") from error
    # In the order in which a worker tries them.
    for family, kind, protocol, _, where in found:
        held = None
        try:
            held = socket.socket(family, kind, protocol)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(where)
        except OSError as error:
            failure = error
            if held is not None:
                held.close()
        else:
            return held
    reason = failure.strerror if failure is not None else "it has no address"
    raise OSError(f"cannot listen on {host}:{port}: {reason}") from failure


def _remove_stale(path: str) -> None:
    """Remove the socket file that a killed worker left; never one that somebody listens on."""
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX) as asking:
            try:
                asking.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
