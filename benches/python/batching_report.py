"""The report of `batching.py` as text: a block for each case, then every aim on a line of its own."""

from collections.abc import Sequence
from itertools import groupby

from batching_cases import CASES, Case
from report import JUDGED, Row, Spread
from runs import Result
from scale_tables import number, print_table
from tables import OTHERS_SHARE_MAX, VERDICTS, cell


def print_report(
    rows: Sequence[Row], results: Sequence[Result], cases: Sequence[Case], arms: Sequence[str]
) -> None:
    """Print the figures, the aims, what went wrong, and whether others disturbed."""
    print(f"median (least-most) of the repeats; ratios are {JUDGED} / arm, of medians and of each repeat")
    for name, metrics in groupby(rows, key=lambda row: row.scenario):
        print(f"\n\n{name}: {CASES[name].title}")
        for row in metrics:
            print(f"\n{row.metric}, {row.unit}\n")
            print_table(["arm", "found", "ratio", "ratio by repeat"], _lines(row, arms))
    print("\n\naims\n")
    judged = [row for row in rows if row.aim]
    print_table(["case", "figure", "found", "unit", "aim", "", "by"], [_verdict(row) for row in judged])
    for result in results:
        if result.failure is not None:
            print(f"\nFAILED {result.scenario} {result.arm}, repeat {result.repeat}: {result.failure}")
        if "had_to_be_killed" in result.figures:
            print(f"\n{result.scenario} {result.arm}, repeat {result.repeat}: had to be killed")
    disturbed = [result for result in results if result.others_share > OTHERS_SHARE_MAX]
    if disturbed:
        most = max(result.others_share for result in disturbed)
        print(f"\nothers used the machine in {len(disturbed)} of {len(results)} runs, up to {most:.0%} of it")


def _lines(row: Row, arms: Sequence[str]) -> list[list[str]]:
    """Return a line for each arm that has this figure, or should have had it."""
    lines: list[list[str]] = []
    for arm in arms:
        found, failures = row.arms.get(arm), row.failures.get(arm, 0)
        if found is not None or failures:
            ratio = f"{row.ratios[arm]:.2f}" if arm in row.ratios else ""
            lines.append([arm, cell(found, failures), ratio, _paired(row.paired.get(arm))])
    return lines


def _verdict(row: Row) -> list[str]:
    """Return the line of one aim."""
    by = "" if row.attained is None else number(row.attained)
    found = cell(row.arms.get(JUDGED), row.failures.get(JUDGED, 0))
    return [row.scenario, row.metric, found, row.unit, row.aim, VERDICTS[row.reached], by]


def _paired(found: Spread | None) -> str:
    """Return the spread of the ratios of each repeat."""
    return "" if found is None else f"{found.middle:.2f} ({found.least:.2f}-{found.most:.2f})"
