"""What every test shares: both event loops, and the checks that nothing is left behind.

Each asynchronous test runs on asyncio's loop and on uvloop, unless it is marked ``any_loop``. After each test
no memory is claimed any more; after the whole run no tokio thread has ever entered Python.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop
from headrace import _headrace

from support import GUARD

_RUNTIME_DIR = tempfile.TemporaryDirectory(prefix="headrace-tests-")
# Workers of tests list themselves here, not where those of this user do; so do processes that tests start.
os.environ["HEADRACE_RUNTIME_DIR"] = _RUNTIME_DIR.name

# Ignored signals are inherited, and whoever runs the tests in the background may ignore this one.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

TOKIO_THREAD = "headrace-tokio"
"""What the binding names tokio's threads."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("any_loop"):
        return {"asyncio": asyncio.SelectorEventLoop}
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


def pytest_collection_finish() -> None:
    """What the modules of all tests hold stays, so that it is no part of each test's collection below, which
    would take longer than most tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_stays_claimed() -> Iterator[None]:
    """Windows and unfinished requests give their memory back, and no callback raises into the void."""
    unraisable: list[str] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda raised: unraisable.append(f"{raised.object!r}: {raised.exc_value!r}")
    try:
        yield
        gc.collect()
        until = time.monotonic() + GUARD
        while _headrace._claimed_bytes() and time.monotonic() < until:
            time.sleep(0.002)
    finally:
        sys.unraisablehook = before
    assert _headrace._claimed_bytes() == 0
    assert unraisable == []


@pytest.fixture(scope="session", autouse=True)
def no_tokio_thread_enters_python(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    entries = _headrace._audit()
    if entries is None:
        warnings.warn(
            "THE AUDIT OF ENTRIES INTO PYTHON WAS SKIPPED: this wheel is built without the feature audit",
            stacklevel=1,
        )
        return
    whole_run = request.session.testscollected > 500
    assert entries or not whole_run, "nothing was recorded at all, so the audit shows nothing"
    assert [name for name in entries if name.startswith(TOKIO_THREAD)] == [], entries
