"""Proves the dependency rules from what cargo resolves: `wire` without tokio, `core` without pyo3 and
cudarc, `cuda` without tokio and pyo3; `faults` and `fakecuda`, which are for tests, neither below nor above
any of them.
Also that no file is too long and nothing is left unfinished.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    "headrace-wire": {"tokio", "pyo3", "cudarc", "headrace-faults"},
    "headrace": {"pyo3", "cudarc", "headrace-faults", "headrace-fakecuda"},
    "headrace-cuda": {"tokio", "pyo3", "headrace-faults", "headrace-fakecuda"},
    "headrace-py": {"headrace-faults", "headrace-fakecuda"},
    "headrace-faults": {"headrace", "headrace-wire", "pyo3", "cudarc"},
    "headrace-fakecuda": {"headrace", "headrace-wire", "headrace-cuda", "tokio", "pyo3", "cudarc"},
}
LINES_MAX = 500
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|todo!\(|unimplemented!\(|dbg!\(")


def dependencies(crate: str) -> set[str]:
    """Names of everything a crate depends on, test dependencies apart."""
    command = ["cargo", "tree", "-p", crate, "-e", "normal", "--prefix", "none", "--format", "{p}"]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {line.split()[0] for line in output.splitlines() if line.strip()}


def source_files() -> list[Path]:
    """Tracked source files."""
    patterns = ["rust/*.rs", "python/*.py", "tests/*.py", "benches/*.py", "examples/*.py"]
    output = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return [ROOT / line for line in output.splitlines()]


def main() -> int:
    """Print each violation; the exit code says whether there was one."""
    problems: list[str] = []
    for crate, forbidden in FORBIDDEN.items():
        found = dependencies(crate) & forbidden
        problems += [f"{crate} must not depend on {name}" for name in sorted(found)]
    for path in source_files():
        if path == Path(__file__).resolve() or not path.exists():
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        name = path.relative_to(ROOT)
        if len(lines) > LINES_MAX:
            problems.append(f"{name} has {len(lines)} lines, more than {LINES_MAX}")
        for number, line in enumerate(lines, 1):
            if UNFINISHED.search(line):
                problems.append(f"{name}:{number} is unfinished: {line.strip()}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
