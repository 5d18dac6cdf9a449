"""Workers that are killed, frozen, drained and replaced at random under 256 concurrent calls: every await
resolves, no stream looks complete that is not, no item is lost, doubled or out of order, nothing runs twice,
and afterwards nothing is left.

A minute in every run: three quarters of it on uvloop, a quarter on asyncio's loop. `HEADRACE_CHURN_SECONDS`
sets another time, `HEADRACE_SOAK_SECONDS` that of `make soak`; `HEADRACE_SEED` repeats the draws of a run.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import os
import random
import resource
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import headrace as hr
import pytest

from sequence import Sequence
from support import GUARD, WORKERS, Process, eventually, idle, python

pytestmark = pytest.mark.asyncio

SECONDS = float(os.environ.get("HEADRACE_CHURN_SECONDS", "60"))
SOAK_SECONDS = float(os.environ.get("HEADRACE_SOAK_SECONDS", "60"))
SEED = int(os.environ.get("HEADRACE_SEED", "7"))
CALLERS = 256
SITES = 4

GROWTH_MAX = 24 * 1024 * 1024
"""Bytes that the process may hold more at the end than after a third of the time, when all has been used."""

FAILURES = (hr.Disconnected, hr.Overloaded, hr.CannotConnect, hr.NoInstances)
"""What a caller may be told when workers come and go. A timeout is not among them: it would hide a hang."""


REPEATABLE = 1 << 63
"""Part of the number of a call that may run more than once."""

AFTER = "after"
"""Request id of the calls that show that every worker answers again."""


class Site:
    """An address, and the process that serves there. It is replaced whenever it has gone."""

    def __init__(self, address: str, ledger: Path, stack: contextlib.ExitStack) -> None:
        self.address = address
        self._arguments = (str(WORKERS / "ledger.py"), address, str(ledger))
        self._stack = stack
        self._process = self._start()

    def _start(self) -> Process:
        return self._stack.enter_context(python(*self._arguments))

    async def ready(self) -> None:
        """Wait until it says that it listens."""
        assert "serving" in await self._process.error_line()

    async def _gone(self, process: Process) -> int:
        """Wait until a process has ended; returns its exit code."""
        code = await asyncio.to_thread(process.popen.wait, GUARD)
        process.end()
        return code

    async def kill(self, dice: random.Random) -> None:
        self._process.signal(signal.SIGKILL)
        await self._gone(self._process)
        await asyncio.sleep(dice.choice([0, dice.uniform(0, 0.5)]))
        self._process = self._start()
        await self.ready()

    async def freeze(self, dice: random.Random) -> None:
        """For less than the liveness bound, or for more."""
        self._process.signal(signal.SIGSTOP)
        await asyncio.sleep(dice.uniform(0, 2.5))
        self._process.signal(signal.SIGCONT)

    async def drain(self, dice: random.Random) -> None:
        """Replaced when it has finished what it had."""
        self._process.signal(signal.SIGTERM)
        assert await self._gone(self._process) == 0
        self._process = self._start()
        await self.ready()

    async def roll(self, dice: random.Random) -> None:
        """Replaced while it still finishes what it had."""
        leaving, self._process = self._process, self._start()
        leaving.signal(signal.SIGTERM)
        await self.ready()
        assert await self._gone(leaving) == 0

    async def stop(self) -> None:
        """Drain it for good; it must have nothing to finish."""
        self._process.signal(signal.SIGTERM)
        code, _, told = await self._process.ended()
        assert code == 0, told
        assert "draining, 0 requests in flight" in told, told


def rest(request: dict[str, Any], items: list[Any]) -> dict[str, Any]:
    """What is missing of a stream that was lost."""
    return request | {"skip": len(items)}


class Books:
    """What the callers saw."""

    def __init__(self) -> None:
        self.endings: Counter[str] = Counter()
        self.messages: dict[str, str] = {}
        # Numbers, not names: the books of an hour must not look like a leak.
        self.answered = array.array("Q")
        self.refused = array.array("Q")

    def note(self, number: int, ending: str, answered: bool) -> None:
        self.endings[ending] += 1
        if answered:
            self.answered.append(number)

    def failed(self, number: int, error: hr.HeadraceError, answered: bool) -> None:
        name = type(error).__name__
        self.messages[name] = str(error)
        self.note(number, name, answered)
        if isinstance(error, hr.Disconnected):
            may_have_run = error.maybe_executed
        else:
            # The others say that this attempt did not run; one before it may have.
            may_have_run = bool(number & REPEATABLE)
        if not may_have_run:
            assert not answered, "something that did not run answered"
            self.refused.append(number)


class Caller:
    """Makes one call after the other, each of a kind that is drawn."""

    def __init__(self, router: hr.Router, books: Books, which: int) -> None:
        self._router = router
        self._books = books
        self._dice = random.Random(f"{SEED}/{which}")
        self._numbers = iter(range(which << 32, (which + 1) << 32))

    async def call_until(self, until: float) -> None:
        while time.monotonic() < until:
            if not await self._one_call():
                # Whoever is refused at once comes back a little later.
                await asyncio.sleep(self._dice.uniform(0, 0.02))

    async def _one_call(self) -> bool:
        number = next(self._numbers)
        permits = self._dice.choices([{}, {"idempotent": True}, {"resume": rest}], [70, 15, 15])[0]
        kinds = [self._unary, self._stream, self._stream, self._threaded]
        kind = self._dice.choice(kinds[1:] if "resume" in permits else kinds)
        if permits:
            number |= REPEATABLE
        items = Sequence()
        try:
            # Only a call that never resolves comes near it.
            async with asyncio.timeout(3 * GUARD):
                ending = await kind(items, request_id=str(number), **permits)
        except FAILURES as error:
            self._books.failed(number, error, items.items > 0)
            return False
        self._books.note(number, ending, answered=ending != "abandoned")
        return True

    async def _unary(self, items: Sequence, **options: Any) -> str:
        request = {"size": self._size(), "gap": self._gap()}
        call = self._router.call(request, endpoint="unary", **options)
        if self._dice.random() < 0.1:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._dice.uniform(0, 0.01)):
                    items.take(await call)
            return "complete" if items.items else "abandoned"
        items.take(await call)
        return "complete"

    async def _stream(self, items: Sequence, **options: Any) -> str:
        return await self._read("stream", items, **options)

    async def _threaded(self, items: Sequence, **options: Any) -> str:
        return await self._read("threaded", items, **options)

    async def _read(self, endpoint: str, items: Sequence, **options: Any) -> str:
        expected = self._dice.choice([0, 1, 5, 50, 300])
        request = {"items": expected, "skip": 0, "size": self._size(), "gap": self._gap()}
        leaves_after, stops_after = (self._dice.choice([None, None, None, 1, 20]) for _ in range(2))
        async with self._router.generate(request, endpoint=endpoint, **options) as stream:
            async for item in stream:
                items.take(item)
                if items.items == leaves_after:
                    return "left"
                if items.items == stops_after:
                    stream.stop()
            if stream.stopped:
                assert stops_after is not None
                assert stops_after <= items.items <= expected
                return "stopped"
        assert items.items == expected, f"a stream looked complete after {items.items} of {expected}"
        return "resumed" if stream.resumed else "complete"

    def _size(self) -> int:
        return self._dice.choice([8, 8, 8, 200, 3_000, 20_000])

    def _gap(self) -> float:
        return self._dice.choice([0, 0, 0.001, 0.02])


async def disturb(site: Site, dice: random.Random, until: float, done: Counter[str]) -> None:
    """Let one thing after the other happen to a site, with pauses."""
    while True:
        await asyncio.sleep(dice.uniform(0.2, 2.5))
        if time.monotonic() > until:
            return
        action = dice.choice([site.kill, site.kill, site.freeze, site.freeze, site.drain, site.roll])
        await action(dice)
        done[action.__name__] += 1


def held_bytes() -> int:
    """Memory of this process that is resident."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def port_below_ephemeral(dice: random.Random) -> int:
    """A free port that no outgoing connection is given while its worker is away."""
    while True:
        port = dice.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def check_ledger(ledger: Path, books: Books) -> int:
    """Compare what ran with what the callers saw; returns how many calls that may run again did."""
    ran = Counter(int(line) for line in ledger.read_text().splitlines() if line != AFTER)
    again = [number for number, times in ran.items() if times > 1]
    wrongly = [number for number in again if not number & REPEATABLE]
    assert not wrongly, f"{len(wrongly)} of {len(ran)} calls ran more than once, call {wrongly[0]:x} for one"
    assert all(number in ran for number in books.answered), "something answered that did not run"
    wrongly = [number for number in books.refused if number in ran]
    assert not wrongly, f"{len(wrongly)} calls ran and are said not to have, call {wrongly[0]:x} for one"
    return len(again)


@pytest.mark.parametrize("seconds", [SECONDS, pytest.param(SOAK_SECONDS, marks=pytest.mark.soak)])
async def test_workers_come_and_go_at_random_under_256_calls(seconds: float, tmp_path: Path):
    on_uvloop = type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    seconds *= 0.75 if on_uvloop else 0.25
    dice = random.Random(SEED)
    ledger = tmp_path / "ledger"
    books = Books()
    done: Counter[str] = Counter()
    settings: dict[str, Any] = {"ping_interval": 0.5, "ping_timeout": 0.5, "timeout": None}
    with contextlib.ExitStack() as stack:
        # Both kinds of sockets, since each has its own ways to be left behind.
        addresses = [f"127.0.0.1:{port_below_ephemeral(dice)}" for _ in range(SITES // 2)]
        addresses += [f"unix:{tmp_path}/{index}" for index in range(SITES // 2)]
        sites = [Site(address, ledger, stack) for address in addresses]
        async with hr.Router(addresses, **settings) as router:
            await asyncio.gather(*(site.ready() for site in sites))
            await router.wait_for_instances(SITES, GUARD)
            descriptors_before = descriptors()
            until = time.monotonic() + seconds
            callers = [Caller(router, books, which).call_until(until) for which in range(CALLERS)]
            disturbing = [
                disturb(site, random.Random(f"{SEED}/{site.address[-1]}"), until, done) for site in sites
            ]
            running = asyncio.gather(*callers, *disturbing)
            await asyncio.wait([running], timeout=seconds / 3)
            held_early = held_bytes()
            await running
            # Nobody is disturbed any more: every worker is found again, and answers.
            await router.wait_for_instances(SITES, 2 * GUARD)
            for instance in router.instances():
                its_id = instance.instance_id
                await router.call({"size": 8, "gap": 0}, endpoint="unary", instance=its_id, request_id=AFTER)
            await eventually(lambda: idle(router))
            assert not any(instance.in_flight for instance in router.instances())
            grown = held_bytes() - held_early
            await eventually(lambda: descriptors() <= descriptors_before)
            for site in sites:
                await site.stop()
    report = f"seed {SEED}: {books.endings}, {done}, {books.messages}"
    again = check_ledger(ledger, books)
    assert grown < GROWTH_MAX, f"{grown >> 20} MiB more are held; {report}"
    assert books.endings["complete"] > 2 * CALLERS, report
    assert books.endings["Disconnected"], f"nothing was disturbed; {report}"
    assert again, f"no call that may run again did, so the ledger shows nothing; {report}"
    assert books.endings["resumed"] or seconds < 10, report
    assert {"kill", "freeze", "drain", "roll"} <= set(done) or seconds < 10, report
