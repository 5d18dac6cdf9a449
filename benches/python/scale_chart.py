"""Draw what `scale.py --json` wrote: `scale_chart.py RESULTS.json CHART.png`.

A panel for each figure of each curve that has more than one point: medians as lines, the range of the
repeats as a band, cliffs as rings. It needs matplotlib, which `peers/chart.txt` pins.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter

COLUMNS = 6
PANEL_INCHES = (3.2, 2.5)
DOTS_PER_INCH = 96

# Distinct to eyes that confuse red and green as well (Okabe and Ito). Headrace first.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
CLIFF_COLOUR = "#c00000"


@dataclass(frozen=True)
class Line:
    """One arm in one panel: its points, and where it has cliffs."""

    xs: list[int]
    middle: list[float]
    least: list[float]
    most: list[float]
    cliffs: list[int]


@dataclass(frozen=True)
class Panel:
    """One figure of one curve."""

    curve: dict[str, Any]
    metric: dict[str, Any]
    lines: dict[str, Line]


def panels(document: dict[str, Any]) -> list[Panel]:
    """Return what there is to draw, in the order of the curves."""
    found: list[Panel] = []
    for curve in document["curves"]:
        for metric in curve["metrics"]:
            lines = {arm: _line(document, curve, metric, arm) for arm in document["settings"]["arms"]}
            shown = {arm: line for arm, line in lines.items() if len(line.xs) > 1}
            if shown:
                found.append(Panel(curve, metric, shown))
    return found


def _line(document: dict[str, Any], curve: dict[str, Any], metric: dict[str, Any], arm: str) -> Line:
    """Return one arm's points of one figure; what is not positive has no place on a log axis."""
    values: dict[int, list[float]] = {}
    for run in document["runs"]:
        figure = run["figures"].get(metric["key"])
        if (run["curve"], run["arm"]) == (curve["name"], arm) and figure is not None and figure > 0:
            values.setdefault(run["x"], []).append(figure)
    xs = sorted(values)
    key = (curve["name"], arm, metric["key"])
    cliffs = [
        cliff["at"] for cliff in document["cliffs"] if (cliff["curve"], cliff["arm"], cliff["metric"]) == key
    ]
    return Line(
        xs,
        [median(values[x]) for x in xs],
        [min(values[x]) for x in xs],
        [max(values[x]) for x in xs],
        cliffs,
    )


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw all panels into one picture, a curve's panels beside each other."""
    drawn = panels(document)
    if not drawn:
        raise SystemExit("nothing to draw: no curve has two points")
    places = _places(drawn)
    rows = max(row for row, _ in places) + 1
    figure, grid = pyplot.subplots(
        rows,
        COLUMNS,
        figsize=(PANEL_INCHES[0] * COLUMNS, PANEL_INCHES[1] * rows),
        squeeze=False,
        facecolor="white",
        layout="constrained",
    )
    colours = {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(document["settings"]["arms"])}
    for row in grid:
        for axes in row:
            axes.set_visible(False)
    for panel, (row, column) in zip(drawn, places, strict=True):
        _draw_panel(grid[row][column], panel, colours)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    figure.suptitle(_headline(document), fontsize=9, x=0.01, ha="left")
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white", transparent=False)


def _places(drawn: list[Panel]) -> list[tuple[int, int]]:
    """Return a row and a column for each panel; each curve starts a row."""
    places: list[tuple[int, int]] = []
    row, column, curve = -1, COLUMNS, ""
    for panel in drawn:
        if panel.curve["name"] != curve or column == COLUMNS:
            row, column, curve = row + 1, 0, panel.curve["name"]
        places.append((row, column))
        column += 1
    return places


def _draw_panel(axes: Any, panel: Panel, colours: dict[str, str]) -> None:
    """Draw one panel."""
    axes.set_visible(True)
    axes.set_facecolor("white")
    for arm, line in panel.lines.items():
        axes.plot(line.xs, line.middle, marker="o", markersize=3, color=colours[arm], label=arm)
        axes.fill_between(line.xs, line.least, line.most, color=colours[arm], alpha=0.2, linewidth=0)
        for x in line.cliffs:
            height = line.middle[line.xs.index(x)]
            axes.plot([x], [height], "o", markersize=10, markerfacecolor="none", color=CLIFF_COLOUR)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_short))
        axis.set_minor_formatter("")
    low, high = axes.get_ylim()
    if high < 12 * low:
        # Less than a decade would show noise as a mountain.
        centre = (low * high) ** 0.5
        low, high = centre / 3.5, centre * 3.5
        axes.set_ylim(low, high)
    if high < 200 * low:
        axes.yaxis.set_minor_formatter(FuncFormatter(_short_if_round))
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.tick_params(labelsize=7, which="both")
    axes.set_title(f"{panel.curve['name']}: {panel.metric['unit']}", fontsize=9, loc="left")
    axes.set_xlabel(panel.curve["grows"], fontsize=8)


def _short(value: float, _: object) -> str:
    """Return a number of an axis in few letters."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def _short_if_round(value: float, position: object) -> str:
    """Return a number between the decades if it is a two or a five."""
    digit = f"{value:e}"[0]
    return _short(value, position) if digit in "25" else ""


def _headline(document: dict[str, Any]) -> str:
    """Return where and with what the figures were made, and what rings are."""
    machine, versions = document["machine"], document["versions"]
    packages = (f"{name} {versions[name]}" for name in ("python", "uvloop", "headrace") if versions.get(name))
    cliff = document["settings"]["cliff"]
    return (
        f"{machine['cpu']}, a core for each side; {', '.join(packages)}; {document['started']}\n"
        f"red ring: a unit of work costs more than {cliff} times what it cost at the point before"
    )


def main() -> int:
    """Read the results, and draw them."""
    parser = argparse.ArgumentParser(description="Draw the curves of scale.py.")
    parser.add_argument("results", type=Path, help="what scale.py --json wrote")
    parser.add_argument("chart", type=Path, help="the PNG to write")
    options = parser.parse_args()
    draw(json.loads(options.results.read_text()), options.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
