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
    """One metric: its spread in each arm, the ratio to the floor, the aim and the verdict."""

    scenario: str
    metric: str
    unit: str
    arms: Mapping[str, Spread]
    ratio: float | None
    aim: str
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
    """Return one row for each metric that any arm has a figure for."""
    rows = [_row(results, scenario, metric, arms) for scenario in scenarios for metric in scenario.metrics]
    return [row for row in rows if row.arms]


def _row(results: Sequence[Result], scenario: Scenario, metric: Metric, arms: Sequence[str]) -> Row:
    """Return the row of one metric."""
    spreads = {
        arm: found for arm in arms if (found := spread(results, scenario.name, arm, metric.key)) is not None
    }
    judged, reference = spreads.get(JUDGED), spreads.get(REFERENCE)
    ratio = judged.middle / reference.middle if judged and reference and reference.middle else None
    reached = None
    if metric.aim is not None and judged is not None:
        less = metric.aim.less
        base = spread(results, scenario.name, BARE, less) if less else None
        reached = _reached(metric.aim, judged.middle, ratio, base)
    aim = describe_aim(metric.aim)
    return Row(scenario.name, metric.key, metric.unit, spreads, ratio, aim, reached)


def _reached(aim: Aim, judged: float, ratio: float | None, base: Spread | None) -> bool | None:
    """Say whether the aim is reached, or nothing where what it compares with was not run."""
    value: float | None = judged
    if aim.of_floor:
        value = ratio
    elif aim.less is not None:
        value = judged - base.middle if base else None
    if value is None:
        return None
    return value >= aim.value if aim.at_least else value <= aim.value


def describe_aim(aim: Aim | None) -> str:
    """Return the aim in words."""
    if aim is None:
        return ""
    sign = ">=" if aim.at_least else "<="
    scale = f" x {REFERENCE}" if aim.of_floor else ""
    less = f" beyond {BARE}" if aim.less else ""
    return f"{sign} {aim.value:g}{scale}{less}"
