"""Count what an item costs in system calls and switches: `python benches/python/syscalls.py --help`.

Three counters look at the same loads, each in processes of its own: `strace -c` names every system
call but slows them, `perf stat` counts some of them at full speed, and the kernel's own counters of
the threads say how often they were switched with nothing attached at all.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from arms import ARMS, Arm
from processes import RunFailed
from scale import choose_arms, choose_cores, chosen, listed, origin, say, write_json
from scale_tables import number, print_table
from scenarios import SCENARIOS
from syscalls_runs import COUNTED, SIDES, Counted, count_per_item
from syscalls_tools import Tool, perf, plain, strace

TOOLS = {"plain": plain, "strace": strace, "perf": perf}
DEFAULT_SCENARIOS = ("S1", "S2", "S3", "S4", "S5", "S5b")

# A line is shown when some arm has this many of it for a thousand items, or calls.
SHOWN_FROM = 0.5


@dataclass(frozen=True)
class Run:
    """Counts per item on each side, or the reason why there are none."""

    scenario: str
    arm: str
    tool: str
    repeat: int
    per_item: dict[str, dict[str, float]] = field(default_factory=dict)
    failure: str | None = None


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description="Count system calls and switches for each item.")
    parser.add_argument(
        "--scenarios", type=listed, default=DEFAULT_SCENARIOS, help=f"of {', '.join(COUNTED)}"
    )
    parser.add_argument("--arms", type=listed, help=f"of {', '.join(ARMS)}")
    parser.add_argument("--tools", type=listed, default=list(TOOLS), help=f"of {', '.join(TOOLS)}")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="smaller loads, for a first look")
    parser.add_argument("--cores", type=listed, help="CLIENT,SERVER: the core of each side")
    parser.add_argument("--json", type=Path, help="write every count to this file")
    options = parser.parse_args(words)
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    try:
        names = chosen(options.scenarios, list(COUNTED), "counted scenario")
        options.scenarios = [COUNTED[name] for name in names]
        options.arms = choose_arms(options.arms or _usable_arms())
        chosen(options.tools, list(TOOLS), "tool")
        options.cores = choose_cores(options.cores)
    except ValueError as reason:
        parser.error(str(reason))
    return options


def _usable_arms() -> list[str]:
    """Return every arm that is installed and has a server."""
    return [arm.name for arm in ARMS.values() if arm.has_server and not arm.missing()]


def usable_tools(names: Sequence[str]) -> tuple[list[Tool], dict[str, str]]:
    """Return the tools that work here, and for the others the reason."""
    tools: list[Tool] = []
    missing: dict[str, str] = {}
    for name in names:
        try:
            tools.append(TOOLS[name]())
        except LookupError as reason:
            missing[name] = str(reason)
    return tools, missing


async def run_all(options: argparse.Namespace, tools: Sequence[Tool]) -> list[Run]:
    """Run everything, arms taking turns, with a line of progress for each count."""
    plan: list[tuple[int, Counted, Tool, Arm]] = [
        (repeat, counted, tool, arm)
        for repeat in range(1, options.repeats + 1)
        for counted in options.scenarios
        for tool in tools
        for arm in options.arms
        if counted.scenario not in arm.lacks
    ]
    runs: list[Run] = []
    for done, (repeat, counted, tool, arm) in enumerate(plan, start=1):
        start = time.monotonic()
        place = (counted.scenario, arm.name, tool.name, repeat)
        try:
            run = Run(*place, await count_per_item(counted, arm, tool, options.cores, options.quick))
        except RunFailed as why:
            run = Run(*place, failure=str(why))
        runs.append(run)
        words = f"repeat {repeat}  {counted.scenario:9}  {tool.name:6}  {arm.name:14}"
        failed = "FAILED  " if run.failure else ""
        say(f"[{done:3}/{len(plan)}] {words}  {failed}{time.monotonic() - start:5.1f} s")
    return runs


def print_report(runs: Sequence[Run], scenarios: Sequence[Counted], arms: Sequence[Arm]) -> None:
    """Print a table for each scenario: a column for each side of each arm."""
    for counted in scenarios:
        print(f"\n{counted.scenario}: {SCENARIOS[counted.scenario].title}; for each 1,000 items or calls\n")
        columns = [(arm.name, side) for arm in arms for side in SIDES]
        rows: list[list[str]] = []
        for tool, name in _lines(runs, counted.scenario):
            values = [_per_thousand(runs, counted.scenario, tool, name, column) for column in columns]
            if max((abs(value) for value in values if value is not None), default=0.0) >= SHOWN_FROM:
                rows.append([tool, name, *("" if value is None else number(value) for value in values)])
        print_table(["counter", "what", *(f"{arm} {side}" for arm, side in columns)], rows)
    for run in runs:
        if run.failure is not None:
            print(f"\nFAILED {run.scenario} {run.arm} under {run.tool}, repeat {run.repeat}: {run.failure}")


def _lines(runs: Sequence[Run], scenario: str) -> list[tuple[str, str]]:
    """Return every tool and name that was counted, the most frequent of each tool first."""
    most: dict[tuple[str, str], float] = {}
    for run in runs:
        if run.scenario == scenario:
            for counts in run.per_item.values():
                for name, count in counts.items():
                    most[run.tool, name] = max(most.get((run.tool, name), 0.0), count)
    return sorted(most, key=lambda line: (list(TOOLS).index(line[0]), -most[line]))


def _per_thousand(
    runs: Sequence[Run], scenario: str, tool: str, name: str, column: tuple[str, str]
) -> float | None:
    """Return the median of a count over the repeats, for a thousand items; none if there was no run."""
    arm, side = column
    values = [
        run.per_item[side].get(name, 0.0) * 1000
        for run in runs
        if (run.scenario, run.tool, run.arm) == (scenario, tool, arm) and run.per_item
    ]
    return median(values) if values else None


def main() -> int:
    """Count, report, and return 1 if any run failed."""
    options = parse()
    tools, missing = usable_tools(options.tools)
    for name, reason in missing.items():
        say(f"{name} is left out: {reason}")
    if not tools:
        return 2
    where = origin(options.arms)
    try:
        runs = asyncio.run(run_all(options, tools))
    except KeyboardInterrupt:
        return 130
    print_report(runs, options.scenarios, options.arms)
    for name, reason in missing.items():
        print(f"\n{name} was left out: {reason}")
    if options.json:
        settings = {"repeats": options.repeats, "quick": options.quick, "cores": asdict(options.cores)}
        loads = [asdict(counted) for counted in options.scenarios]
        found = [asdict(run) for run in runs]
        write_json(
            options.json, {**where, "settings": settings, "loads": loads, "missing": missing, "runs": found}
        )
    return 1 if any(run.failure for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
