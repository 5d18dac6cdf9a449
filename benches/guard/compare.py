"""Whether figures have risen: arithmetic only, so that it can be tested."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

Figures = Mapping[str, float]
"""Instructions for each item, by case."""


class Verdict(Enum):
    """What became of a case."""

    SAME = "within tolerance"
    SLOWER = "SLOWER"
    FASTER = "faster: record it"
    NOT_COMPARED = "nothing to compare with"


@dataclass(frozen=True)
class Comparison:
    """One case, what was expected of it, and what was found."""

    case: str
    expected: float | None
    measured: float
    tolerance: float

    @property
    def change(self) -> float | None:
        """Return by which share the figure has risen, if it is known."""
        return None if self.expected is None else self.measured / self.expected - 1

    @property
    def verdict(self) -> Verdict:
        """Return what that means. At the tolerance itself a figure is still within it."""
        if self.change is None:
            return Verdict.NOT_COMPARED
        if self.change > self.tolerance:
            return Verdict.SLOWER
        return Verdict.FASTER if self.change < -self.tolerance else Verdict.SAME


def compare(expected: Figures, measured: Figures, tolerances: Figures) -> list[Comparison]:
    """Compare every measured case, those that nothing is known of included."""
    return [
        Comparison(case, expected.get(case), figure, tolerances[case]) for case, figure in measured.items()
    ]


def with_recorded_changes(
    base: Figures, before: Mapping[str, Figures], now: Mapping[str, Figures]
) -> dict[str, float]:
    """Return what to expect beside a merge base: its figures, changed as the records were changed.

    `before` and `now` are the records of the merge base and of this tree, by toolchain. A change that was
    recorded with one toolchain is meant, and so is not an error with another, for which there is no record.
    """
    shared = [(before[key], now[key]) for key in before if key in now]
    expected = dict(base)
    for case in base:
        ratios = [new[case] / old[case] for old, new in shared if old.get(case) and case in new]
        expected[case] *= max(ratios, default=1.0)
    return expected
