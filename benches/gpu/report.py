"""Runs the measures and writes them down, with everything that they depend on."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import importlib.metadata
import platform
import re
import subprocess
import sys
from pathlib import Path

import headrace
from headrace import cuda

from driver import Driver
from measures import FULL, MEASURES, SHORT, Row

ROOT = Path(__file__).resolve().parents[2]
NOTE = """Made by `make gpu`. Each table is one run: its sides take turns, figures are medians of rounds with
their ranges, ratios are of medians. The kernel fills the device for a known time, and stands for a model's.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    reason = cuda.unavailable_reason()
    if reason is not None:
        print(f"there is nothing to measure: {reason}", file=sys.stderr)
        return 1
    device = cuda.devices()[arguments.device]
    lines = [f"# {device.name}", "", NOTE, *facts(device)]
    plan = SHORT if arguments.short else FULL
    for title, measure in MEASURES:
        print(f"{title} ...", flush=True)
        rows = asyncio.run(_bounded(measure(arguments.device, plan)))
        lines += ["", f"## {title}", "", "| | measured | goal |", "|---|---|---|", *map(line, rows)]
        for row in rows:
            print(f"  {row.name}: {row.value}" + (f"  [{row.goal}]" if row.goal else ""), flush=True)
    out = arguments.out or where(device.name, arguments.short)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join(lines) + "\n")
        print(f"written to {out}")
    return 0


async def _bounded(measure: object) -> list[Row]:
    return await asyncio.wait_for(measure, 600)  # type: ignore[arg-type]


def where(name: str, is_short: bool) -> Path | None:
    """The results' place; none for a proof that it runs, or for what is no GPU."""
    if is_short or "fake" in name:
        return None
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return ROOT / "benches" / "results" / f"gpu-{slug}.md"


def line(row: Row) -> str:
    return f"| {row.name.strip()} | {row.value} | {row.goal} |"


def facts(device: cuda.Device) -> list[str]:
    """What the figures depend on."""
    packages = []
    for name in ("torch", "cupy", "uvloop", "numpy"):
        try:
            packages.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            packages.append(f"no {name}")
    major, minor = device.compute_capability
    return [
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, Headrace {headrace.__version__}, {commit()}",
        f"- {device.memory_bytes >> 30} GiB, compute capability {major}.{minor}, "
        f"{device.copy_engines} engines for copies, memory pools: {device.memory_pools}",
        f"- driver {driver_version()}, CUDA {Driver(device.ordinal).version}",
        f"- Python {platform.python_version()}, {platform.platform()}, {', '.join(packages)}",
    ]


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "no commit known"


def driver_version() -> str:
    """As the kernel's module says it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    found = re.search(r"Kernel Module\D+([0-9.]+)", text)
    return found[1] if found else "unknown"


if __name__ == "__main__":
    sys.exit(main())
