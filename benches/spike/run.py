"""Runs the spike: interleaves the arms, prints a table and writes results.json beside itself.

python run.py [--repeats 5] [--seconds 1.6] [--only S1,S5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FLOOR, IN_PROCESS = "floor", "in-process"
DIRECT = ["a", "b", "c"]
SOON = ["a+soon", "b+soon", "c+soon"]
ADAPT = ["b+adapt", "c+adapt"]

# scenario, loop, pinned to separate cores, arms
PLAN: list[tuple[str, str, bool, list[str]]] = [
    ("S1", "uvloop", True, [FLOOR, *DIRECT, *SOON, *ADAPT]),
    ("S1", "uvloop", False, [FLOOR, *DIRECT, *ADAPT]),
    ("S5", "uvloop", True, [IN_PROCESS, FLOOR, *DIRECT, *SOON, *ADAPT, "c+adapt-guard"]),
    ("S5", "uvloop", False, [FLOOR, *DIRECT, *ADAPT]),
    ("S5t", "uvloop", True, [IN_PROCESS, FLOOR, *DIRECT, "c+soon", *ADAPT]),
    ("S5b", "uvloop", True, [IN_PROCESS, FLOOR, *DIRECT, *SOON, *ADAPT]),
    ("S1", "asyncio", True, [FLOOR, *DIRECT, "c+adapt"]),
    ("S5", "asyncio", True, [IN_PROCESS, FLOOR, *DIRECT, "c+adapt"]),
    ("S5b", "asyncio", True, [IN_PROCESS, FLOOR, *DIRECT, "c+adapt"]),
    ("ping-sleep", "uvloop", True, [FLOOR, *DIRECT]),
    ("ping-spin", "uvloop", True, [FLOOR, *DIRECT]),
]


def once(arm: str, scenario: str, loop: str, pinned: bool, seconds: float) -> dict[str, Any]:
    """One measurement in two fresh processes (one, for the arm without a transport)."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = (str(cores[0]), str(cores[1])) if pinned else ("any", "any")

    def command(role: str, core: str, port: str) -> list[str]:
        return [sys.executable, str(HERE / "peer.py"), role, arm, loop, core, scenario, str(seconds), port]

    server, port = None, "0"
    if arm != IN_PROCESS:
        server = subprocess.Popen(command("server", server_core, "0"), stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        port = server.stdout.readline().strip()
    try:
        client = subprocess.run(
            command("client", client_core, port), stdout=subprocess.PIPE, text=True, timeout=60, check=True
        )
        if server is not None:
            server.wait(timeout=20)
    finally:
        if server is not None and server.poll() is None:
            server.kill()
            server.wait()
    result: dict[str, Any] = json.loads(client.stdout)
    return result


def spread(values: list[float], digits: int) -> str:
    low, mid, high = min(values), statistics.median(values), max(values)
    return f"{mid:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def counter(runs: list[dict[str, Any]], *names: str) -> str:
    """System calls or wakes per item, both sides together."""
    totals = [
        sum(run.get(side, {}).get(n, 0.0) for side in ("client", "server") for n in names) for run in runs
    ]
    return f"{statistics.median(totals):.2f}"


def table(cell: dict[str, Any]) -> list[str]:
    scenario, runs = cell["scenario"], cell["runs"]
    where = "separate cores" if cell["pinned"] else "unpinned"
    lines = [f"### {scenario}, {cell['loop']}, {where}", ""]
    if scenario.startswith("ping"):
        lines += ["| arm | pings answered | p50 ms | max ms |", "|---|---|---|---|"]
        for arm, r in runs.items():
            answered = "/".join(str(x["answered"]) for x in r)
            p50, top = (spread([x[k] for x in r], 1) for k in ("p50_ms", "max_ms"))
            lines.append(f"| {arm} | {answered} of 16 | {p50} | {top} |")
        return [*lines, ""]

    def median(arm: str, key: str) -> float:
        return float(statistics.median(x[key] for x in runs[arm]))

    key, digits = ("p50_us", 0) if scenario == "S1" else ("cpu_us", 1)
    base = median(IN_PROCESS, key) if IN_PROCESS in runs else None
    head = ["arm"]
    head += ["p50 us", "p99 us", "p50 / floor", "CPU us"] if scenario == "S1" else ["CPU us/item", "/ floor"]
    head += ["transport us/item", "/ floor's"] if base is not None else []
    head += ["switches/item", "loop writes", "tokio writes", "loop reads", "tokio reads", "loop wakes"]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm, r in runs.items():
        ratio = f"{median(arm, key) / median(FLOOR, key):.2f}"
        row = [arm, spread([x[key] for x in r], digits)]
        if scenario == "S1":
            row += [spread([x["p99_us"] for x in r], 0), ratio, spread([x["cpu_us"] for x in r], 1)]
        else:
            row.append(ratio)
        if base is not None:
            own, floors = median(arm, key) - base, median(FLOOR, key) - base
            row += ["-", "-"] if arm == IN_PROCESS else [f"{own:.1f}", f"{own / floors:.2f}"]
        row.append(spread([x["switches"] for x in r], 2))
        row += [
            counter(r, n) for n in ("loop_writes", "tokio_writes", "loop_reads", "tokio_reads", "loop_wakes")
        ]
        lines.append("| " + " | ".join(row) + " |")
    return [*lines, ""]


def versions() -> dict[str, str]:
    from importlib.metadata import version

    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.strip()
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "uvloop": version("uvloop"),
        "msgspec": version("msgspec"),
        "rustc": rustc,
    }


def dump(results: dict[str, Any]) -> str:
    """JSON with one measurement per line, so that a change of figures reads well in a diff."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: rounded(v) for k, v in value.items()}
        return float(f"{value:.4g}") if isinstance(value, float) else value

    cells = []
    for cell in results["cells"]:
        arms = []
        for arm, runs in cell["runs"].items():
            lines = ",\n".join("    " + json.dumps(rounded(run)) for run in runs)
            arms.append(f"   {json.dumps(arm)}: [\n{lines}\n   ]")
        head = json.dumps({k: v for k, v in cell.items() if k != "runs"})[:-1]
        cells.append(f'  {head}, "runs": {{\n' + ",\n".join(arms) + "\n  }}")
    head = json.dumps({k: v for k, v in results.items() if k != "cells"})[:-1]
    return f'{head},\n "cells": [\n' + ",\n".join(cells) + "\n ]}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.6)
    parser.add_argument("--only", default="", help="scenarios, separated by commas")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    args = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed")

    only = set(filter(None, args.only.split(",")))
    cells: list[dict[str, Any]] = [
        {"scenario": s, "loop": loop, "pinned": pinned, "runs": {arm: [] for arm in arms}}
        for s, loop, pinned, arms in PLAN
        if not only or s in only
    ]
    load = [os.getloadavg()[0]]
    for repeat in range(args.repeats):
        began = time.monotonic()
        for cell in cells:
            arms = list(cell["runs"])
            # Rotated, so that no arm always follows the same neighbour.
            turn = repeat % len(arms)
            for arm in arms[turn:] + arms[:turn]:
                result = once(arm, cell["scenario"], cell["loop"], cell["pinned"], args.seconds)
                cell["runs"][arm].append(result)
        load.append(os.getloadavg()[0])
        print(
            f"repeat {repeat + 1} of {args.repeats}: {time.monotonic() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    machine = versions()
    args.out.write_text(dump({"machine": machine, "seconds": args.seconds, "load": load, "cells": cells}))
    print(json.dumps(machine))
    print(f"load average, one minute: {', '.join(f'{x:.1f}' for x in load)}\n")
    for cell in cells:
        print("\n".join(table(cell)))


if __name__ == "__main__":
    main()
