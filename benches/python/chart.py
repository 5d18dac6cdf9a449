"""Draw a result as one picture: `chart.py RESULTS.json OUT.png`, in the environment `chart`.

A panel for each figure, a bar for each arm, the best on top. The axes are logarithmic, since the
arms lie up to a hundredfold apart; a bar's length is therefore no measure, and the number stands
beside it. The background is opaque white, to be read on light and dark pages alike.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

# Before pyplot: it needs no screen.
matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine

HEADRACE, FLOOR, BARE = "headrace", "floor", "inprocess"
COLOURS = {HEADRACE: "#d1495b", FLOOR: "#8a8a8a"}
PEER_COLOUR = "#9db4c0"
INK = "#24292f"

# In one process there is no transport, and floor-bursts is no alternative to pick.
LEFT_OUT = frozenset({BARE, "floor-bursts"})

# At twice the width of a README column, so that it stays sharp on dense screens.
SIZE_INCHES = (12, 7.2)
DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Panel:
    """One figure of one scenario."""

    scenario: str
    metric: str
    title: str
    less_is_better: bool = False


PANELS = (
    Panel("S1", "p50_us", "Unary call, 64 B: median, µs", less_is_better=True),
    Panel("S2", "requests_per_s", "64 callers: calls/s"),
    Panel("S3", "items_per_s", "One stream: items/s"),
    Panel("S4", "items_per_s", "64 streams: items/s"),
    Panel("S5", "cpu_us_per_item", "256 paced streams: CPU µs/item", less_is_better=True),
    Panel("S6", "mb_per_s", "Echo of 1 MiB: MB/s"),
)


def short(value: float) -> str:
    """Return a figure as a reader says it."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def draw_panel(axes: Any, panel: Panel, middles: dict[str, float]) -> None:
    """Draw one panel's bars, the best on top."""
    ordered = sorted(middles.items(), key=lambda item: item[1], reverse=panel.less_is_better)
    names = [name for name, _ in ordered]
    values = [value for _, value in ordered]
    bars = axes.barh(names, values, color=[COLOURS.get(name, PEER_COLOUR) for name in names])
    axes.bar_label(bars, [short(value) for value in values], padding=3, fontsize=8.5, color=INK)
    axes.set_xscale("log")
    # From half of the least, so that its bar is seen too; room for the number of the longest.
    axes.set_xlim(min(values) / 2, max(values) * (max(values) / min(values)) ** 0.2 * 1.6)
    better = "less is better" if panel.less_is_better else "more is better"
    axes.set_title(panel.title, fontsize=11, fontweight="bold", loc="left", color=INK, pad=16)
    axes.text(0, 1.015, better, transform=axes.transAxes, fontsize=8.5, color="#57606a")
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    for label in axes.get_yticklabels():
        if label.get_text() == HEADRACE:
            label.set_fontweight("bold")
            label.set_color(COLOURS[HEADRACE])


def draw(document: dict[str, Any], out: Path) -> None:
    """Draw every panel that the results have figures for."""
    found = {
        (row["scenario"], row["metric"]): {
            arm: spread["middle"] for arm, spread in row["arms"].items() if arm not in LEFT_OUT
        }
        for row in document["summary"]
    }
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure, grid = plt.subplots(2, 3, figsize=SIZE_INCHES, facecolor="white", layout=layout)
    for axes, panel in zip(grid.flat, PANELS, strict=True):
        middles = found.get((panel.scenario, panel.metric))
        if middles:
            draw_panel(axes, panel, middles)
        else:
            axes.set_visible(False)
    machine, repeats = document["machine"], document["settings"]["repeats"]
    figure.supxlabel(
        f"Medians over {repeats} repeats, a core each for client and server; logarithmic bars. "
        f"{machine['cpu']}, Linux {machine['kernel'].split('-')[0]}, {document['started'][:10]}",
        fontsize=8.5,
        color="#57606a",
    )
    figure.savefig(out, dpi=DOTS_PER_INCH, facecolor="white", transparent=False)


def main() -> int:
    """Read the results and draw them."""
    parser = argparse.ArgumentParser(description="Draw a result of run.py --json.")
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.results.read_text()), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
