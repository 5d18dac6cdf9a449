"""Measure what a unit of work costs as the work grows: `python benches/python/scale.py --help`.

Every point of every curve has fresh processes. Arms take turns at each point, so that what changes on
the machine meanwhile meets all of them. `scale_chart.py` draws what `--json` writes.
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

from arms import ARMS, Arm
from machine import describe_machine, describe_versions
from runs import Cores
from scale_curves import CURVES, Curve
from scale_report import CLIFF, OTHERS_SHARE_MAX, find_cliffs, print_report
from scale_runs import Point, run_point
from scale_tables import number

DEFAULT_ARMS = ("headrace", "floor")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description="Measure what a unit of work costs as the work grows.")
    parser.add_argument("--curves", type=listed, default=list(CURVES), help=f"of {', '.join(CURVES)}")
    parser.add_argument("--arms", type=listed, default=DEFAULT_ARMS, help=f"of {', '.join(ARMS)}")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer points and smaller loads")
    parser.add_argument("--cores", type=listed, help="CLIENT,SERVER: the core of each side")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args(words)
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    try:
        options.curves = [CURVES[name] for name in chosen(options.curves, list(CURVES), "curve")]
        options.arms = choose_arms(options.arms)
        options.cores = choose_cores(options.cores)
    except ValueError as reason:
        parser.error(str(reason))
    return options


def listed(text: str) -> list[str]:
    """Return the words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def chosen(names: list[str], known: list[str], what: str) -> list[str]:
    """Return the names if all are known."""
    for name in names:
        if name not in known:
            raise ValueError(f"no {what} {name}; there are {', '.join(known)}")
    return names


def choose_arms(names: list[str]) -> list[Arm]:
    """Return the named arms, all of which must be installed and have a server."""
    arms = [
        ARMS[name] for name in chosen(names, [arm.name for arm in ARMS.values() if arm.has_server], "arm")
    ]
    for arm in arms:
        if missing := arm.missing():
            raise ValueError(f"arm {arm.name} lacks {missing}")
    return arms


def choose_cores(names: list[str] | None) -> Cores:
    """Return a core for each side: those asked for, else the first two that we may use."""
    allowed = sorted(os.sched_getaffinity(0))
    cores = [int(name) for name in names] if names else allowed[:2]
    if len(cores) != 2 or not set(cores) <= set(allowed):
        raise ValueError(f"two cores are needed, of {', '.join(map(str, allowed))}")
    return Cores(*cores)


def say(text: str) -> None:
    """Tell the person who waits, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def origin(arms: list[Arm]) -> dict[str, object]:
    """Return when, by which command, where and with what the figures were made."""
    environments = sorted({arm.environment for arm in arms if arm.environment})
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(["python", *sys.argv]),
        "machine": describe_machine(),
        "versions": describe_versions(environments),
    }


async def run_all(options: argparse.Namespace) -> list[Point]:
    """Run everything, with a line of progress for each run."""
    plan: list[tuple[int, Curve, int, Arm]] = [
        (repeat, curve, x, arm)
        for repeat in range(1, options.repeats + 1)
        for curve in options.curves
        for x in (curve.quick_points if options.quick else curve.points)
        for arm in options.arms
    ]
    points: list[Point] = []
    for done, (repeat, curve, x, arm) in enumerate(plan, start=1):
        start = time.monotonic()
        point = await run_point(curve, x, arm, repeat, options.cores, options.quick)
        points.append(point)
        first = curve.metrics[0]
        figure = f"{number(point.figures[first.key])} {first.unit}" if point.failure is None else "FAILED"
        others = point.others_share
        disturbed = f"  others {others:.0%}" if others > OTHERS_SHARE_MAX else ""
        place = f"[{done:3}/{len(plan)}] repeat {repeat}  {curve.name:8} {x:10,}  {arm.name:12}"
        say(f"{place}  {figure:22}  {time.monotonic() - start:5.1f} s{disturbed}")
    return points


def write_json(path: Path, document: dict[str, object]) -> None:
    """Write a document where it was asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    say(f"every figure: {path}")


def main() -> int:
    """Run, report, and return 1 if any run failed; a cliff is a result, not a failure."""
    options = parse()
    where = origin(options.arms)
    try:
        points = asyncio.run(run_all(options))
    except KeyboardInterrupt:
        return 130
    arms = [arm.name for arm in options.arms]
    cliffs = find_cliffs(points, options.curves, arms)
    print_report(points, options.curves, arms, cliffs)
    if options.json:
        settings = {"repeats": options.repeats, "quick": options.quick, "cores": asdict(options.cores)}
        document = {
            **where,
            "settings": {**settings, "arms": arms, "cliff": CLIFF},
            "curves": [_described(curve, options.quick) for curve in options.curves],
            "cliffs": [asdict(cliff) for cliff in cliffs],
            "runs": [asdict(point) for point in points],
        }
        write_json(options.json, document)
    return 1 if any(point.failure for point in points) else 0


def _described(curve: Curve, quick: bool) -> dict[str, object]:
    """Return what a reader of the file needs to know of a curve."""
    return {
        "name": curve.name,
        "title": curve.title,
        "grows": curve.grows,
        "params": {**curve.params, **(curve.quick if quick else {})},
        "metrics": [asdict(metric) for metric in curve.metrics],
    }


if __name__ == "__main__":
    sys.exit(main())
