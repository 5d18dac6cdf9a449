"""Measure what failures cost: `python benches/python/failover.py --help`.

A worker is killed, or frozen, under streams to several; or workers are asked for more than they can do. Every
run has fresh processes: the caller on one core, all workers on another.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path

from arms import ARMS
from failover_cases import CASES, Case
from machine import Busy
from processes import SERVER_START_TIMEOUT_S, RunFailed, ServerProcess, child, run_client
from report import describe_aim, reached, spread
from runs import Cores, Result
from scale import choose_cores, chosen, listed, origin, say, write_json
from scale_tables import number, print_table
from tables import OTHERS_SHARE_MAX, VERDICTS, cell

ARM = ARMS["headrace"]


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description="Measure what the loss of a worker, and overload, cost.")
    parser.add_argument("--cases", type=listed, default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=listed, help="CALLER,WORKERS: the core of each side")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args(words)
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    try:
        options.cases = [CASES[name] for name in chosen(options.cases, list(CASES), "case")]
        options.cores = choose_cores(options.cores)
    except ValueError as reason:
        parser.error(str(reason))
    return options


async def run_all(options: argparse.Namespace) -> list[Result]:
    """Run everything, cases taking turns, with a line of progress for each run."""
    plan = [(repeat, case) for repeat in range(1, options.repeats + 1) for case in options.cases]
    results: list[Result] = []
    for done, (repeat, case) in enumerate(plan, start=1):
        start = time.monotonic()
        result = await run_once(case, repeat, options.cores)
        results.append(result)
        first = case.metrics[0]
        figure = "FAILED" if result.failure else f"{number(result.figures[first.key])} {first.unit}"
        others = result.others_share
        disturbed = f"  others {others:.0%}" if others > OTHERS_SHARE_MAX else ""
        place = f"[{done:3}/{len(plan)}] repeat {repeat}  {case.name:14}"
        say(f"{place}  {figure:24}  {time.monotonic() - start:5.1f} s{disturbed}")
    return results


async def run_once(case: Case, repeat: int, cores: Cores) -> Result:
    """Start fresh processes, run the case, end them; a failure is a result too."""
    before = Busy.read()
    figures: dict[str, float] = {}
    failure = None
    try:
        figures = await _figures(case, cores)
    except RunFailed as why:
        failure = str(why)
    return Result(case.name, ARM.name, repeat, Busy.read().others_share(before), figures, failure)


async def _figures(case: Case, cores: Cores) -> dict[str, float]:
    """Run the workers around the caller."""
    async with AsyncExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="failover-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(temporary))
        job = json.dumps({"bounds": dict(case.bounds), "cpu": cores.server})
        servers: list[ServerProcess] = []
        for _ in range(case.workers):
            running = await stack.enter_async_context(child(ARM, folder, "failover_server.py", job))
            servers.append(ServerProcess(running, await running.read(SERVER_START_TIMEOUT_S)))
        known = [{"address": server.address, "pid": server.pid} for server in servers]
        return await run_client(
            ARM, folder, "failover_client.py", {"case": case.name, "servers": known, "cpu": cores.client}
        )


def print_report(results: list[Result], cases: list[Case]) -> None:
    """Print a line for each figure, and what went wrong."""
    print("\nmedian (least-most) of the repeats; percentiles are those of one repeat\n")
    rows: list[list[str]] = []
    for case in cases:
        for metric in case.metrics:
            found = spread(results, case.name, ARM.name, metric.key)
            verdict = VERDICTS[reached(metric.aim, found.middle if found else None)]
            rows.append([case.name, metric.key, cell(found), metric.unit, describe_aim(metric.aim), verdict])
    print_table(["case", "figure", "found", "unit", "aim", ""], rows)
    print()
    for case in cases:
        print(f"{case.name}: {case.title}")
    for result in results:
        if result.failure is not None:
            print(f"\nFAILED {result.scenario}, repeat {result.repeat}: {result.failure}")
    most = max((result.others_share for result in results), default=0.0)
    if most > OTHERS_SHARE_MAX:
        print(f"\nothers used up to {most:.0%} of the machine during a run: repeat on an idle one")


def main() -> int:
    """Run, report, and return 1 if any run failed; a missed aim is a result, not a failure."""
    options = parse()
    where = origin([ARM])
    try:
        results = asyncio.run(run_all(options))
    except KeyboardInterrupt:
        return 130
    print_report(results, options.cases)
    if options.json:
        document = {
            **where,
            "settings": {"repeats": options.repeats, "cores": asdict(options.cores)},
            "cases": [_described(case) for case in options.cases],
            "runs": [asdict(result) for result in results],
        }
        write_json(options.json, document)
    return 1 if any(result.failure for result in results) else 0


def _described(case: Case) -> dict[str, object]:
    """Return what a reader of the file needs to know of a case."""
    return {
        "name": case.name,
        "title": case.title,
        "workers": case.workers,
        "bounds": dict(case.bounds),
        "params": dict(case.params),
        "metrics": [asdict(metric) for metric in case.metrics],
    }


if __name__ == "__main__":
    sys.exit(main())
