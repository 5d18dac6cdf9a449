"""A guard against getting slower: counts the instructions of the hot loops and compares them.

`guard.py check` compares with `figures.json` if it was recorded with this toolchain, else with the merge
base, built and counted in the same run. `guard.py record` writes `figures.json` anew. README.md says more.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import builds
import toolchain
from cases import CASES, TOLERANCES
from compare import Comparison, Figures, Verdict, compare, with_recorded_changes
from counting import GuardError

FIGURES = Path(__file__).with_name("figures.json")

_SLOWER = """
The cases marked SLOWER take more instructions than they may. Find out which (benches/guard/README.md says
how) and take them out again. If they are worth what they buy, explain that in the commit's message, with
both figures, run `make guard GUARD=record` and commit benches/guard/figures.json."""
_FASTER = """
Fewer instructions than expected. To keep it so, run `make guard GUARD=record` and commit
benches/guard/figures.json."""
_NOTHING = """
No case could be compared: run `make guard GUARD=record` and commit benches/guard/figures.json."""


def main() -> int:
    """Check or record; the exit code says whether something is slower, or cannot be said."""
    parser = argparse.ArgumentParser(description="Count the instructions of the hot loops.")
    parser.add_argument("command", choices=("check", "record"))
    parser.add_argument(
        "--merge-base", action="store_true", help="compare with the merge base, whatever has been recorded"
    )
    options = parser.parse_args()
    began_s = monotonic()
    try:
        for tool in ("valgrind", "cc", "cargo", "git"):
            if shutil.which(tool) is None:
                raise GuardError(f"{tool} is not installed, and without it nothing can be counted")
        code = record() if options.command == "record" else check(force_base=options.merge_base)
    except GuardError as why:
        print(f"guard: {why}", file=sys.stderr)
        code = 1
    print(f"guard took {monotonic() - began_s:.0f} s")
    return code


def check(*, force_base: bool) -> int:
    """Compare with what was recorded, or with the merge base."""
    key, records = toolchain.key(), recorded(FIGURES.read_text() if FIGURES.exists() else None)
    print(f"toolchain: {key}")
    measured = builds.head().counts(CASES)
    if key in records and not force_base:
        print("compared with: benches/guard/figures.json")
        expected = records[key]
    else:
        commit = builds.merge_base()
        print(f"compared with: the merge base {commit[:12]}")
        if not force_base:
            print("(nothing has been recorded with this toolchain)")
        with builds.base(commit) as base:
            counted = base.counts(CASES)
        before = recorded(builds.recorded_at(commit, FIGURES))
        expected = with_recorded_changes(counted, before, records)
    return report(compare(expected, measured, TOLERANCES))


def record() -> int:
    """Count this tree and write it down, in place of all that was recorded with any toolchain."""
    measured = builds.head().counts(CASES)
    content = {toolchain.key(): {**toolchain.notes(), "instructions": measured}}
    FIGURES.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written to {FIGURES.name}")
    return 0


def recorded(text: str | None) -> dict[str, Figures]:
    """Return the figures of a `figures.json`, by toolchain."""
    return {key: entry["instructions"] for key, entry in json.loads(text or "{}").items()}


def report(comparisons: Sequence[Comparison]) -> int:
    """Print every case, and what to do."""
    found = {comparison.verdict for comparison in comparisons}
    whats = {case.name: case.what for case in CASES}
    print(f"\n{'instructions for each':<72} {'expected':>10} {'found':>10} {'change':>8} {'may rise':>8}")
    for each in comparisons:
        expected = "" if each.expected is None else f"{each.expected:,.1f}"
        change = "" if each.change is None else f"{each.change:+.2%}"
        name = f"{each.case}: {whats[each.case]}"
        verdict = "" if each.verdict is Verdict.SAME else each.verdict.value
        figures = f"{expected:>10} {each.measured:>10,.1f} {change:>8} {each.tolerance:>8.0%}"
        print(f"{name:<72} {figures}  {verdict}".rstrip())
    if Verdict.SLOWER in found:
        print(_SLOWER)
    elif Verdict.FASTER in found:
        print(_FASTER)
    if found == {Verdict.NOT_COMPARED}:
        print(_NOTHING)
        return 1
    return 1 if Verdict.SLOWER in found else 0


if __name__ == "__main__":
    sys.exit(main())
