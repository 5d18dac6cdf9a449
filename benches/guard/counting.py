"""Counts instructions: a case run twice under callgrind, and the difference for each item.

Each program runs with `steady.c` preloaded, a fixed seed for hashes and an environment of its own, so that
neither the clock nor the shell that the guard is started from changes what it does.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cases import Case

HERE = Path(__file__).parent
RUN_TIMEOUT_S = 1800
_TOTAL = re.compile(r"^totals: (\d+)$", re.MULTILINE)


class GuardError(Exception):
    """The guard cannot say anything; the message says why."""


@dataclass(frozen=True)
class Build:
    """A build of the repository: the folder of its Python package, its `hot`, and the clock to preload.

    Without `hot`, the Rust cases cannot be run.
    """

    site: Path
    hot: Path | None
    steady: Path

    def counts(self, cases: Sequence[Case]) -> dict[str, float]:
        """Return the instructions for each item of every case that this build can run."""
        runnable = [case for case in cases if case.is_python or self.hot is not None]
        # Counts do not depend on what else runs, so every core counts.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(
                zip((case.name for case in runnable), pool.map(self._per_item, runnable), strict=True)
            )

    def _per_item(self, case: Case) -> float:
        """Return the difference of two runs, in which start and end cancel out."""
        once, twice = self._instructions(case, case.count), self._instructions(case, 2 * case.count)
        return round((twice - once) / case.count, 1)

    def _instructions(self, case: Case, count: int) -> int:
        """Return the instructions of all threads of one run."""
        program = [sys.executable, str(HERE / "hot.py")] if case.is_python else [str(self.hot)]
        with tempfile.TemporaryDirectory(prefix="guard-") as folder:
            report = Path(folder, "callgrind")
            command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={report}", *program]
            run([*command, case.name, str(count)], self._environment(folder))
            total = _TOTAL.search(report.read_text())
        if total is None:
            raise GuardError(f"callgrind reported no total for {case.name}")
        return int(total[1])

    def _environment(self, folder: str) -> dict[str, str]:
        """Return the environment of a run."""
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        return {
            **kept,
            # Both allocators merge and look for free blocks, which takes more or less by the order of all
            # that was freed before, start-up included, and by the length of paths: up to 4 % of a case. With
            # these, Python uses the C library's, and that hands small blocks out again as they came.
            "PYTHONMALLOC": "malloc",
            "GLIBC_TUNABLES": "glibc.malloc.tcache_count=65535",
            "LD_PRELOAD": str(self.steady),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": str(self.site),
            "TMPDIR": folder,
        }


def run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> str:
    """Run a command to its end and return what it prints; raise with its last lines if it fails."""
    try:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=RUN_TIMEOUT_S
        )
    except FileNotFoundError:
        raise GuardError(f"{command[0]} is not installed, or {folder} is missing") from None
    except subprocess.TimeoutExpired:
        raise GuardError(f"took more than {RUN_TIMEOUT_S} s: {' '.join(command)}") from None
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise GuardError(f"failed: {' '.join(command)}\n{last}")
    return done.stdout
