"""Run the benchmarks: `python benches/python/run.py --help`.

Every run has fresh processes. Arms take turns within a repeat, so that what changes on the machine
meanwhile meets all of them.
"""

import argparse
import asyncio
import json
import os
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path

from arms import ARMS, DEFAULT_ARMS, Arm, other_build
from machine import describe_machine, describe_versions
from report import summarise
from runs import Cores, Result, run_once
from scenarios import SCENARIOS, Scenario, select
from tables import OTHERS_SHARE_MAX, number, print_report


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description="Compare Headrace with a pure-Python floor.")
    parser.add_argument(
        "--scenarios", type=_listed, default=list(SCENARIOS), help=f"of {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--arms", type=_listed, help=f"of {', '.join(ARMS)}; or all that are installed")
    parser.add_argument(
        "--build",
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help="also run the Headrace that another interpreter has installed, as headrace-NAME",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="smaller loads, for a first look")
    parser.add_argument("--cores", type=_listed, help="CLIENT,SERVER: the core of each side")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args(words)
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    try:
        options.scenarios = select(options.scenarios)
        options.arms = _choose_arms(options.arms) + [_choose_build(text) for text in options.build]
        options.cores = _choose_cores(options.cores)
    except ValueError as reason:
        parser.error(str(reason))
    return options


def _listed(text: str) -> list[str]:
    """Return the words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _choose_arms(names: list[str] | None) -> list[Arm]:
    """Return the named arms; an absent one is an error only where it was asked for by name."""
    asked_for = names is not None and names != ["all"]
    if not asked_for:
        names = list(ARMS if names else DEFAULT_ARMS)
    arms: list[Arm] = []
    for name in names or ():
        if name not in ARMS:
            raise ValueError(f"no arm {name}; there are {', '.join(ARMS)}")
        arm = ARMS[name]
        missing = arm.missing()
        if missing is None:
            arms.append(arm)
        elif asked_for:
            raise ValueError(f"arm {name}: {missing} is not installed")
        else:
            say(f"arm {name} is left out: {missing} is not installed")
    return arms


def _choose_build(text: str) -> Arm:
    """Return the arm of another build, which has to be there."""
    arm = other_build(text)
    if missing := arm.missing():
        raise ValueError(f"arm {arm.name}: there is no {missing}")
    return arm


def _choose_cores(names: list[str] | None) -> Cores:
    """Return a core for each side: those asked for, else the first two that we may use."""
    allowed = sorted(os.sched_getaffinity(0))
    chosen = [int(name) for name in names] if names else allowed[:2]
    if len(chosen) != 2 or not set(chosen) <= set(allowed):
        raise ValueError(f"two cores are needed, of {', '.join(map(str, allowed))}")
    return Cores(*chosen)


def say(text: str) -> None:
    """Tell the person who waits, apart from the report."""
    print(text, file=sys.stderr, flush=True)


async def run_all(options: argparse.Namespace) -> list[Result]:
    """Run everything, arms taking turns, with a line of progress for each run."""
    plan: list[tuple[int, Scenario, Arm]] = [
        (repeat, scenario, arm)
        for repeat in range(1, options.repeats + 1)
        for scenario in options.scenarios
        for arm in options.arms
        if scenario.name not in arm.lacks
    ]
    results: list[Result] = []
    for done, (repeat, scenario, arm) in enumerate(plan, start=1):
        place = f"[{done:3}/{len(plan)}] repeat {repeat}  {scenario.name:9}  {arm.name:13}"
        start = time.monotonic()
        if sys.stderr.isatty():
            print(f"{place}  ...", end="\r", file=sys.stderr, flush=True)
        result = await run_once(scenario, arm, repeat, options.cores, options.quick)
        results.append(result)
        took = f"{time.monotonic() - start:5.1f} s"
        others = result.others_share
        disturbed = f"  others {others:.0%}" if others > OTHERS_SHARE_MAX else ""
        say(f"{place}  {_first_figure(scenario, result):24}  {took}{disturbed}")
    return results


def _first_figure(scenario: Scenario, result: Result) -> str:
    """Return the figure that stands for a run while it goes on."""
    if result.failure is not None:
        return "FAILED"
    for metric in scenario.metrics:
        if metric.key in result.figures:
            return f"{number(result.figures[metric.key])} {metric.unit}"
    return ""


def write_json(options: argparse.Namespace, results: list[Result], where: dict[str, object]) -> None:
    """Write every figure, and what it takes to judge and repeat them."""
    names = [arm.name for arm in options.arms]
    document = {
        **where,
        "settings": {
            "repeats": options.repeats,
            "quick": options.quick,
            "cores": asdict(options.cores),
            "shares": {arm.name: arm.share for arm in options.arms},
            "params": {
                scenario.name: dict(scenario.quick if options.quick else scenario.params)
                for scenario in options.scenarios
            },
        },
        "summary": [asdict(row) for row in summarise(results, options.scenarios, names)],
        "runs": [asdict(result) for result in results],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1) + "\n")


def main() -> int:
    """Run, report, and return 1 if any run failed; a missed aim is a result, not a failure."""
    options = parse()
    environments = sorted({arm.environment for arm in options.arms if arm.environment})
    machine, versions = describe_machine(), describe_versions(environments)
    where: dict[str, object] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine,
        "versions": versions,
    }
    say(f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}")
    say(", ".join(f"{name} {version}" for name, version in versions.items() if version))
    try:
        results = asyncio.run(run_all(options))
    except KeyboardInterrupt:
        return 130
    print_report(results, options.scenarios, [arm.name for arm in options.arms])
    if options.json:
        write_json(options, results, where)
        say(f"every figure: {options.json}")
    return 1 if any(result.failure for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
