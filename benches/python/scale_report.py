"""What the runs of `scale.py` say together: medians, cliffs, and both as text.

A cliff is a jump in what a unit of work costs, by more than `CLIFF` from one point to the next.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from scale_curves import Curve, Metric
from scale_runs import Point
from scale_tables import number, print_table

CLIFF = 1.5

# From this share of the machine on, what others ran meanwhile is worth a warning.
OTHERS_SHARE_MAX = 0.05


@dataclass(frozen=True)
class Spread:
    """The median of a figure over the repeats, with the least and the most."""

    middle: float
    least: float
    most: float


@dataclass(frozen=True)
class Cliff:
    """One jump: between which points, by how much, and whether the repeats agree on it."""

    curve: str
    arm: str
    metric: str
    unit: str
    before: int
    at: int
    times: float
    sure: bool

    def describe(self) -> str:
        """Return the cliff as one line."""
        doubt = "" if self.sure else " (?)"
        where = f"{self.curve}, {self.arm}: from {self.before:,} to {self.at:,}"
        return f"{where}, {self.unit} is {self.times:.1f} times worse{doubt}"


def spread(points: Iterable[Point], curve: Curve, x: int, arm: str, key: str) -> Spread | None:
    """Return the spread of one figure over the repeats, if any gave it."""
    values = [
        point.figures[key]
        for point in points
        if (point.curve, point.x, point.arm) == (curve.name, x, arm) and key in point.figures
    ]
    return Spread(median(values), min(values), max(values)) if values else None


def find_cliffs(points: Sequence[Point], curves: Sequence[Curve], arms: Sequence[str]) -> list[Cliff]:
    """Return every jump between neighbouring points."""
    found: list[Cliff] = []
    for curve in curves:
        xs = sorted({point.x for point in points if point.curve == curve.name})
        for arm in arms:
            for metric in curve.metrics:
                if metric.flat:
                    found += _cliffs_of(points, curve, xs, arm, metric)
    return found


def _cliffs_of(
    points: Sequence[Point], curve: Curve, xs: Sequence[int], arm: str, metric: Metric
) -> list[Cliff]:
    """Return the jumps of one figure of one arm."""
    found: list[Cliff] = []
    for before, at in pairwise(xs):
        left = spread(points, curve, before, arm, metric.key)
        right = spread(points, curve, at, arm, metric.key)
        if left is None or right is None or min(left.middle, right.middle) <= 0:
            continue
        times = left.middle / right.middle if metric.rate else right.middle / left.middle
        if times > CLIFF:
            apart = right.most < left.least if metric.rate else right.least > left.most
            sure = apart and left.least != left.most
            found.append(Cliff(curve.name, arm, metric.key, metric.unit, before, at, times, sure))
    return found


def print_report(
    points: Sequence[Point], curves: Sequence[Curve], arms: Sequence[str], cliffs: Sequence[Cliff]
) -> None:
    """Print a table for each curve, then the cliffs, and what went wrong."""
    marks = {(cliff.curve, cliff.arm, cliff.metric, cliff.at): cliff for cliff in cliffs}
    for curve in curves:
        print(f"\n{curve.name}: {curve.title}\n")
        rows: list[list[str]] = []
        for x in sorted({point.x for point in points if point.curve == curve.name}):
            for arm in arms:
                cells = [
                    _cell(spread(points, curve, x, arm, each.key), marks.get((curve.name, arm, each.key, x)))
                    for each in curve.metrics
                ]
                rows.append([f"{x:,}", arm, *cells])
        print_table([curve.grows, "arm", *(metric.unit for metric in curve.metrics)], rows)
    print(f"\ncliffs: a unit of work costs more than {CLIFF} times what it cost at the point before")
    print("(?): one repeat only, or the ranges of the repeats overlap\n")
    for cliff in cliffs:
        print(f"  {cliff.describe()}")
    if not cliffs:
        print("  none")
    for point in points:
        if point.failure is not None:
            print(f"\nFAILED {point.curve} at {point.x}, {point.arm}, repeat {point.repeat}: {point.failure}")
    most = max((point.others_share for point in points), default=0.0)
    if most > OTHERS_SHARE_MAX:
        print(f"\nothers used up to {most:.0%} of the machine during a run: repeat on an idle one")


def _cell(found: Spread | None, cliff: Cliff | None) -> str:
    """Return a figure, its range where there is one, and the mark of a cliff."""
    if found is None:
        return ""
    text = number(found.middle)
    if found.least != found.most:
        text += f" ({number(found.least)}-{number(found.most)})"
    return f"{text} CLIFF x{cliff.times:.1f}" if cliff else text
