"""The report as text: one wide table for the arms that run by default, else a block for each scenario."""

from collections.abc import Sequence
from itertools import groupby

from report import BARE, JUDGED, REFERENCE, Row, Spread, spread, summarise
from runs import Result
from scenarios import SCENARIOS, Scenario

USED = (
    ("client_cpu_s", "client CPU s"),
    ("server_cpu_s", "server CPU s"),
    ("client_peak_rss_mib", "client peak MiB"),
    ("server_peak_rss_mib", "server peak MiB"),
)

# From this share of the machine on, what others ran meanwhile is worth a warning.
OTHERS_SHARE_MAX = 0.05

# A wide table has room for these arms, and for the one ratio that is of interest among them.
WIDE_ARMS = frozenset({BARE, REFERENCE, JUDGED})

VERDICTS = {True: "reached", False: "MISSED", None: ""}


def number(value: float) -> str:
    """Return a figure with the three digits that matter, and thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(found: Spread | None, failures: int = 0) -> str:
    """Return a spread as one cell, with the runs that failed."""
    if found is None:
        return "failed" if failures else ""
    text = number(found.middle)
    if found.least != found.most:
        text += f" ({_range(found)})"
    return f"{text}, {failures} failed" if failures else text


def print_report(results: Sequence[Result], scenarios: Sequence[Scenario], arms: Sequence[str]) -> None:
    """Print the figures, what they took, what went wrong, and whether others disturbed."""
    rows = summarise(results, scenarios, arms)
    if not WIDE_ARMS.issuperset(arms):
        _print_blocks(rows, arms)
    else:
        print(f"\nmedian (least-most) of the repeats; ratio is {JUDGED} / {REFERENCE}\n")
        head = ["scenario", "metric", "unit", *arms, "ratio", "aim", ""]
        _print_table(head, [_figure_cells(row, arms) for row in rows])
    print("\nwhat the processes used: CPU in the measured part, memory at its peak\n")
    _print_table(["scenario", "arm", *(title for _, title in USED)], _use(results, scenarios, arms))
    for result in results:
        if result.failure is not None:
            where = f"{result.scenario} {result.arm}, repeat {result.repeat}"
            print(f"\nFAILED {where}: {result.failure}")
        for key in result.figures:
            if key.endswith("had_to_be_killed"):
                print(f"\n{result.scenario} {result.arm}, repeat {result.repeat}: {key}")
    most = max((result.others_share for result in results), default=0.0)
    if most > OTHERS_SHARE_MAX:
        print(f"\nothers used up to {most:.0%} of the machine during a run: repeat on an idle one")


def _print_blocks(rows: Sequence[Row], arms: Sequence[str]) -> None:
    """Print a block for each scenario, with a table of arms for each of its metrics."""
    print(f"\nmedian and least-most of the repeats; ratios are {JUDGED} / arm, of medians and of each repeat")
    head = ["arm", "median", "least-most", "ratio", "ratio by repeat"]
    for name, metrics in groupby(rows, key=lambda row: row.scenario):
        print(f"\n\n{name}: {SCENARIOS[name].title}")
        for row in metrics:
            verdict = f"; aim {row.aim} {_verdict(row)}".rstrip() if row.aim else ""
            print(f"\n{row.metric}, {row.unit}{verdict}\n")
            _print_table(head, _arm_cells(row, arms))


def _arm_cells(row: Row, arms: Sequence[str]) -> list[list[str]]:
    """Return a line for each arm that has this metric, or should have had it."""
    lines: list[list[str]] = []
    for arm in arms:
        found, failures = row.arms.get(arm), row.failures.get(arm, 0)
        if found is None:
            if failures:
                lines.append([arm, "failed", "", "", ""])
            continue
        failed = f", {failures} failed" if failures else ""
        ratio, paired = _ratio(row.ratios.get(arm)), _paired(row.paired.get(arm))
        lines.append([arm, number(found.middle) + failed, _range(found), ratio, paired])
    return lines


def _figure_cells(row: Row, arms: Sequence[str]) -> list[str]:
    """Return a row of the wide table."""
    cells = [cell(row.arms.get(arm), row.failures.get(arm, 0)) for arm in arms]
    return [row.scenario, row.metric, row.unit, *cells, _ratio(row.ratio), row.aim, _verdict(row)]


def _verdict(row: Row) -> str:
    """Return whether the aim is reached, and by what."""
    return "" if row.attained is None else f"{VERDICTS[row.reached]} at {number(row.attained)}"


def _ratio(value: float | None) -> str:
    """Return a ratio, of which two digits after the point are worth reading."""
    return "" if value is None else f"{value:.2f}"


def _paired(found: Spread | None) -> str:
    """Return the spread of the ratios of each repeat."""
    if found is None:
        return ""
    return f"{found.middle:.2f} ({found.least:.2f}-{found.most:.2f})"


def _range(found: Spread) -> str:
    """Return the least and the most of a spread."""
    return f"{number(found.least)}-{number(found.most)}"


def _use(results: Sequence[Result], scenarios: Sequence[Scenario], arms: Sequence[str]) -> list[list[str]]:
    """Return the rows of the table of what was used."""
    rows: list[list[str]] = []
    for scenario in scenarios:
        for arm in arms:
            cells = [cell(spread(results, scenario.name, arm, key)) for key, _ in USED]
            if any(cells):
                rows.append([scenario.name, arm, *cells])
    return rows


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print columns as wide as they need to be."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
