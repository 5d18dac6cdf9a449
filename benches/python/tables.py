"""The report as text."""

from collections.abc import Sequence

from report import JUDGED, REFERENCE, Row, Spread, spread, summarise
from runs import Result
from scenarios import Scenario

USED = (
    ("client_cpu_s", "client CPU s"),
    ("server_cpu_s", "server CPU s"),
    ("client_peak_rss_mib", "client peak MiB"),
    ("server_peak_rss_mib", "server peak MiB"),
)

# From this share of the machine on, what others ran meanwhile is worth a warning.
OTHERS_SHARE_MAX = 0.05

_VERDICTS = {True: "reached", False: "MISSED", None: ""}


def number(value: float) -> str:
    """Return a figure with the three digits that matter, and thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(found: Spread | None) -> str:
    """Return a spread as one cell."""
    if found is None:
        return ""
    if found.least == found.most:
        return number(found.middle)
    return f"{number(found.middle)} ({number(found.least)}-{number(found.most)})"


def print_report(results: Sequence[Result], scenarios: Sequence[Scenario], arms: Sequence[str]) -> None:
    """Print the figures, what they took, what went wrong, and whether others disturbed."""
    print(f"\nmedian (least-most) of the repeats; ratio is {JUDGED} / {REFERENCE}\n")
    rows = summarise(results, scenarios, arms)
    _print_table(
        ["scenario", "metric", "unit", *arms, "ratio", "aim", ""],
        [_figure_cells(row, arms) for row in rows],
    )
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


def _figure_cells(row: Row, arms: Sequence[str]) -> list[str]:
    """Return a row of the first table."""
    return [
        row.scenario,
        row.metric,
        row.unit,
        *(cell(row.arms.get(arm)) for arm in arms),
        f"{row.ratio:.2f}" if row.ratio is not None else "",
        row.aim,
        _VERDICTS[row.reached],
    ]


def _use(results: Sequence[Result], scenarios: Sequence[Scenario], arms: Sequence[str]) -> list[list[str]]:
    """Return the rows of the second table."""
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
