"""Count what an item costs in instructions: `python benches/python/batching_instructions.py --help`.

A busy machine changes nothing about these. Each load runs under callgrind over two lengths; the difference,
divided by the difference in items, is what one item takes in all threads, with starting and ending cancelled
out.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from batching import choose_arms
from batching_arms import BatchingArm
from scale import listed, origin, write_json
from scale_tables import print_table

RUN_TIMEOUT_S = 600
_TOTAL = re.compile(r"^totals: (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Load:
    """A case of `batching.py` at two lengths."""

    name: str
    case: str
    params: dict[str, int]
    lengths: tuple[int, int]
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Count:
    """What one arm takes for an item."""

    load: str
    arm: str
    instructions: float


_BOTH = ("headrace", "eager")
LOADS = (
    Load("submit, 256 submitters", "submit", {"submitters": 256, "warm_up": 2_560}, (25_600, 76_800), _BOTH),
    Load("submit, 1 submitter", "submit", {"submitters": 1, "warm_up": 1_000}, (10_000, 30_000), _BOTH),
    Load("map", "map", {"warm_up": 10_000, "rounds": 1}, (50_000, 150_000), _BOTH),
)


def per_item(load: Load, arm: BatchingArm, cpu: int) -> Count:
    """Return the difference of two runs."""
    few, many = (_instructions(load, arm, items, cpu) for items in load.lengths)
    return Count(load.name, arm.name, (many - few) / (load.lengths[1] - load.lengths[0]))


def _instructions(load: Load, arm: BatchingArm, items: int, cpu: int) -> int:
    """Return the instructions of all threads of one run."""
    job: dict[str, Any] = {
        "case": load.case,
        "arm": arm.name,
        "params": {**load.params, "items": round(items / arm.share)},
        "repeat": 1,
        "cpu": cpu,
        "other_cpu": cpu,
        "loop": "uvloop",
        "collects": True,
    }
    with tempfile.TemporaryDirectory(prefix="batching-") as folder:
        report = Path(folder, "callgrind")
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={report}"]
        command = [*valgrind, *arm.command("batching_client.py"), json.dumps(job)]
        # Sets and dictionaries lie in memory as hashes have it.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
        if done.returncode != 0:
            raise SystemExit(f"{load.name}, {arm.name}: {done.stderr[-2000:]}")
        total = _TOTAL.search(report.read_text())
    if total is None:
        raise SystemExit(f"{load.name}, {arm.name}: callgrind reported no total")
    return int(total[1])


def main() -> int:
    """Count, and print a line for each load."""
    parser = argparse.ArgumentParser(description="Count the instructions of an item. Takes valgrind.")
    parser.add_argument("--arms", type=listed, default=list(_BOTH))
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    options = parser.parse_args()
    arms = choose_arms(options.arms)
    plan = [(load, arm) for load in LOADS for arm in arms if arm.name in load.arms]
    # Counts do not depend on what else runs, so every core counts.
    cores = sorted(os.sched_getaffinity(0))
    with ThreadPoolExecutor(len(cores)) as pool:
        counts = list(pool.map(lambda one, cpu: per_item(*one, cpu), plan, cycle(cores)))
    by = {(count.load, count.arm): count.instructions for count in counts}
    rows = [[load.name, *(f"{by[load.name, arm.name]:,.0f}" for arm in arms)] for load in LOADS]
    print("instructions for an item, all threads, under uvloop\n")
    print_table(["load", *(arm.name for arm in arms)], rows)
    if options.json:
        write_json(options.json, {**origin(arms), "counts": [asdict(count) for count in counts]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
