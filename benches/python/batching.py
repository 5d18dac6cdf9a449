"""Measure batching: `python benches/python/batching.py --help`.

Every run has a fresh process. Arms take turns within a repeat, so that what changes on the machine meanwhile
meets all of them.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batching_arms import BATCHING_ARMS, BatchingArm
from batching_cases import CASES, Case
from batching_report import print_report
from machine import Busy
from processes import CLIENT_TIMEOUT_S, SERVER_STOP_TIMEOUT_S, Child, RunFailed, child
from report import summarise
from runs import Result
from scale import choose_cores, chosen, listed, origin, say, write_json
from scale_tables import number
from syscalls_client import switches
from tables import OTHERS_SHARE_MAX

# What is done at once when it is no more needed: connections, threads that go.
IDLE_SETTLE_S = 0.3


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description="Compare ways to collect items to batches.")
    parser.add_argument("--cases", type=listed, default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument(
        "--arms", type=listed, help=f"of {', '.join(BATCHING_ARMS)}; or all that are installed"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="smaller loads, for a first look")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument(
        "--cores", type=listed, help="MEASURED,OTHER: the core of the measured process, and of arrivals"
    )
    parser.add_argument("--without-gc", action="store_true", help="with Python's cyclic collector off")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args(words)
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    try:
        options.cases = [CASES[name] for name in chosen(options.cases, list(CASES), "case")]
        options.arms = choose_arms(options.arms)
        options.cores = choose_cores(options.cores)
    except ValueError as reason:
        parser.error(str(reason))
    return options


def choose_arms(names: list[str] | None) -> list[BatchingArm]:
    """Return the named arms; an absent one is an error only where it was asked for by name."""
    asked_for = names is not None
    arms: list[BatchingArm] = []
    for name in chosen(names or list(BATCHING_ARMS), list(BATCHING_ARMS), "arm"):
        arm = BATCHING_ARMS[name]
        missing = arm.missing()
        if missing is None:
            arms.append(arm)
        elif asked_for:
            raise ValueError(f"arm {name}: {missing} is not installed")
        else:
            say(f"arm {name} is LEFT OUT: {missing} is not installed")
    return arms


async def run_all(options: argparse.Namespace) -> list[Result]:
    """Run everything, arms taking turns, with a line of progress for each run."""
    plan: list[tuple[int, Case, BatchingArm]] = [
        (repeat, case, arm)
        for repeat in range(1, options.repeats + 1)
        for case in options.cases
        for arm in options.arms
        if arm.name in case.arms and repeat <= min(arm.repeats_max, case.repeats_max)
    ]
    results: list[Result] = []
    for done, (repeat, case, arm) in enumerate(plan, start=1):
        start = time.monotonic()
        result = await run_once(case, arm, repeat, options)
        results.append(result)
        first = case.metrics[0]
        figure = "FAILED" if result.failure else f"{number(result.figures[first.key])} {first.unit}"
        others = result.others_share
        disturbed = f"  others {others:.0%}" if others > OTHERS_SHARE_MAX else ""
        place = f"[{done:3}/{len(plan)}] repeat {repeat}  {case.name:13}  {arm.name:13}"
        say(f"{place}  {figure:32}  {time.monotonic() - start:5.1f} s{disturbed}")
    return results


async def run_once(case: Case, arm: BatchingArm, repeat: int, options: argparse.Namespace) -> Result:
    """Start a fresh process, run the case, end it; a failure is a result too."""
    before = Busy.read()
    figures: dict[str, float] = {}
    failure = None
    job = {
        "case": case.name,
        "arm": arm.name,
        "params": params_of(case, options.quick),
        "repeat": repeat,
        "cpu": options.cores.client,
        "other_cpu": options.cores.server,
        "loop": options.loop,
        "collects": not options.without_gc,
    }
    with tempfile.TemporaryDirectory(prefix="batching-", ignore_cleanup_errors=True) as folder:
        try:
            async with child(arm, Path(folder), "batching_client.py", json.dumps(job)) as running:
                figures = await _figures(case, running)
        except RunFailed as why:
            failure = str(why)
    return Result(case.name, arm.name, repeat, Busy.read().others_share(before), figures, failure)


async def _figures(case: Case, running: Child) -> dict[str, float]:
    """Return what the process says, and what was seen of it from outside."""
    seen: dict[str, float] = {}
    if case.watched_s is not None:
        await running.read(CLIENT_TIMEOUT_S)
        seen = await _watch(running.pid, case.watched_s)
        running.close_stdin()
    figures = await running.read(CLIENT_TIMEOUT_S)
    if not await running.end(SERVER_STOP_TIMEOUT_S):
        seen["had_to_be_killed"] = 1.0
    return {**figures, **seen}


async def _watch(pid: int, seconds: float) -> dict[str, float]:
    """Count how often the threads of an idle process are switched."""
    await asyncio.sleep(IDLE_SETTLE_S)
    before = switches(pid)
    await asyncio.sleep(seconds)
    after = switches(pid)
    return {
        name: float(after[f"switches, {name}"] - before[f"switches, {name}"])
        for name in ("voluntary", "involuntary")
    }


def params_of(case: Case, quick: bool) -> Mapping[str, Any]:
    """Return how much a case loads."""
    return {**case.params, **(case.quick if quick else {})}


def main() -> int:
    """Run, report, and return 1 if any run failed; a missed aim is a result, not a failure."""
    options = parse()
    where = origin(options.arms)
    try:
        results = asyncio.run(run_all(options))
    except KeyboardInterrupt:
        return 130
    names = [arm.name for arm in options.arms]
    rows = summarise(results, options.cases, names)
    print_report(rows, results, options.cases, names)
    if options.json:
        document = {
            **where,
            "settings": {
                "repeats": options.repeats,
                "repeats_max": {arm.name: arm.repeats_max for arm in options.arms},
                "quick": options.quick,
                "loop": options.loop,
                "collects": not options.without_gc,
                "cores": asdict(options.cores),
                "shares": {arm.name: arm.share for arm in options.arms},
                "params": {case.name: dict(params_of(case, options.quick)) for case in options.cases},
            },
            "summary": [asdict(row) for row in rows],
            "runs": [asdict(result) for result in results],
        }
        write_json(options.json, document)
    return 1 if any(result.failure for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
