"""The folder of Unix sockets at which worker processes answer their parent for metrics and health.

Its parent removes it. One whose parent was killed is removed by the next parent of the same user: a parent
holds a lock on its folder, which the system takes back however a process ends. (A process id would not do:
another process may have it by then, or see other ids.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator

_PREFIX = "headrace-metrics-"


@contextlib.contextmanager
def metrics_folder() -> Generator[str]:
    """A folder that only this user may look into, for as long as the context lasts.

    Yields:
        Its path.
    """
    _remove_left()
    path, lock = _made()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _made() -> tuple[str, int]:
    """A new folder and the descriptor that locks it."""
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX)
        lock = _locked(path)
        # Before it was locked it may have been taken for one that is left.
        if lock is not None and os.path.isdir(path):
            return path, lock
        if lock is not None:
            os.close(lock)


def _remove_left() -> None:
    """Remove the folders of this user that no process holds."""
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and _is_own(entry):
                lock = _locked(entry.path)
                if lock is not None:
                    shutil.rmtree(entry.path, ignore_errors=True)
                    os.close(lock)


def _is_own(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid()
    except OSError:
        # It was removed meanwhile.
        return False


def _locked(path: str) -> int | None:
    """A descriptor that holds the lock of a folder; ``None`` if another does, or the folder is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
