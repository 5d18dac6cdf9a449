"""What the repeats say together: medians with their spread, ratios, and verdicts on the aims."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from runs import Result
from scenarios import Aim, Metric, Scenario

REFERENCE, JUDGED, BARE = "floor", "headrace", "inprocess"


@dataclass(frozen=True)
class Spread:
    """The median of a figure over the repeats, with the least and the most."""

    middle: float
    least: float
    most: float


@dataclass(frozen=True)
class Row:
    """One metric: its spread in each arm, the ratios of Headrace to them, the aim and the verdict.

    `failures` counts the runs of an arm that gave no figure. `ratio` is the one to the floor. `paired` has
    the ratios of each repeat by itself: its two runs were neighbours, so a slow minute met both.
    `attained` is what the aim is compared with.
    """

    scenario: str
    metric: str
    unit: str
    arms: Mapping[str, Spread]
    failures: Mapping[str, int]
    ratios: Mapping[str, float]
    paired: Mapping[str, Spread]
    ratio: float | None
    aim: str
    attained: float | None
    reached: bool | None


def spread(results: Iterable[Result], scenario: str, arm: str, key: str) -> Spread | None:
    """Return the spread of one figure over the repeats, if any gave it."""
    values = [
        result.figures[key]
        for result in results
        if (result.scenario, result.arm) == (scenario, arm) and key in result.figures
    ]
    return Spread(median(values), min(values), max(values)) if values else None


def summarise(results: Sequence[Result], scenarios: Sequence[Scenario], arms: Sequence[str]) -> list[Row]:
    """Return one row for each metric that any arm has a figure for, or failed to give."""
    rows = [_row(results, scenario, metric, arms) for scenario in scenarios for metric in scenario.metrics]
    return [row for row in rows if row.arms or row.failures]


def _row(results: Sequence[Result], scenario: Scenario, metric: Metric, arms: Sequence[str]) -> Row:
    """Return the row of one metric."""
    middles = _Middles(results, scenario.name)
    spreads = {
        arm: found for arm in arms if (found := spread(results, scenario.name, arm, metric.key)) is not None
    }
    failed = [
        result.arm
        for result in results
        if result.scenario == scenario.name and result.failure and metric.only in (None, result.arm)
    ]
    judged = spreads.get(JUDGED)
    ratios = {
        arm: judged.middle / found.middle
        for arm, found in spreads.items()
        if judged and found.middle and arm != JUDGED
    }
    attained = _attained(metric.aim, metric.key, middles) if metric.aim else None
    return Row(
        scenario.name,
        metric.key,
        metric.unit,
        spreads,
        {arm: failed.count(arm) for arm in arms if arm in failed},
        ratios,
        {arm: found for arm in ratios if (found := _paired(results, scenario.name, arm, metric.key))},
        ratios.get(REFERENCE),
        describe_aim(metric.aim),
        attained,
        reached(metric.aim, attained),
    )


def _paired(results: Sequence[Result], scenario: str, arm: str, key: str) -> Spread | None:
    """Return the spread of the ratio of Headrace to an arm, each repeat by itself."""
    figures = {
        (result.arm, result.repeat): result.figures[key]
        for result in results
        if result.scenario == scenario and key in result.figures
    }
    values = [
        figures[JUDGED, repeat] / other
        for (name, repeat), other in figures.items()
        if name == arm and other and (JUDGED, repeat) in figures
    ]
    return Spread(median(values), min(values), max(values)) if values else None


@dataclass(frozen=True)
class _Middles:
    """The medians of one scenario."""

    results: Sequence[Result]
    scenario: str

    def of(self, arm: str, key: str) -> float | None:
        """Return an arm's median of a figure, if it has one."""
        found = spread(self.results, self.scenario, arm, key)
        return found.middle if found else None


def _attained(aim: Aim, key: str, middles: _Middles) -> float | None:
    """Return what an aim is compared with, or nothing where a part of it was not run."""
    taken_off = middles.of(BARE, aim.less) if aim.less else 0.0
    judged = middles.of(JUDGED, key)
    if judged is None or taken_off is None:
        return None
    if aim.of is None:
        return judged - taken_off
    other = middles.of(aim.of, key)
    # Where the other arm costs nothing beyond the bare one, noise is all that is left to compare.
    if other is None or other <= taken_off:
        return None
    return (judged - taken_off) / (other - taken_off)


def reached(aim: Aim | None, attained: float | None) -> bool | None:
    """Say whether an aim is reached, or nothing where that cannot be said."""
    if aim is None or attained is None:
        return None
    return attained >= aim.value if aim.at_least else attained <= aim.value


def describe_aim(aim: Aim | None) -> str:
    """Return the aim in words."""
    if aim is None:
        return ""
    sign = ">=" if aim.at_least else "<="
    if aim.of is None:
        return f"{sign} {aim.value:g}" + (f" beyond {BARE}" if aim.less else "")
    return f"{sign} {aim.value:g} x {aim.of}" + (f", each less {BARE}" if aim.less else "")
