"""The plots: one figure each, as a PNG on white and as an SVG in the colours of the page around it.

Colours are Okabe and Ito's, which colour-blind people tell apart.
"""

import io
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorakit.report.blocks import Picture
from lorakit.runtime import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

INK, FAINT, BLUE, ORANGE = "#1f2328", "#d0d7de", "#0072b2", "#d55e00"
COLOURS = {INK: "var(--ink)", FAINT: "var(--line)", BLUE: "var(--blue)", ORANGE: "var(--orange)"}
"""Colour of the PNG → the page's variable, which is another one in the dark."""
DPI = 200
SIZE = (5.2, 2.9)
"""Inches."""
REM = 6.6
"""Of a page per inch of a figure: its letters are then about as large as the text around it."""
BINS = 500
"""Points of a curve: more cannot be seen, and make the page heavy."""
FEW = 40
"""Points of a curve that are drawn as they are; longer ones are noise around a mean."""
DOTS = 2000
"""Points of a scatter plot."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Values over steps.

    Args:
        label: For the legend.
        points: (step, value) in order.
        style: dots: single measurements; noise: of every step, a running mean tells more; line: exact.
    """

    label: str
    points: Points
    style: Literal["dots", "noise", "line"]


def curves(
    name: str, ylabel: str, drawn: Sequence[Curve], steps: int, mark: tuple[float, float] | None = None
) -> Picture:
    """Curves over optimiser steps.

    Args:
        name: Of the picture.
        ylabel: With the unit.
        drawn: One or two, none of them empty.
        steps: Of the run: how far the axis goes.
        mark: A point to ring: the published step.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = figure_of(SIZE)
    for curve, colour in zip(drawn, (BLUE, ORANGE), strict=False):
        if curve.style == "noise" and len(curve.points) > FEW:
            _noisy(axes, curve, colour)
        else:
            marker = "o" if curve.style == "dots" or len(curve.points) < 3 else ""
            axes.plot(*_columns(curve.points), color=colour, marker=marker, markersize=4, label=curve.label)
    if mark is not None:
        axes.plot(*mark, "o", markersize=10, color=INK, fillstyle="none", label=f"published (step {mark[0]:,.0f})")
    axes.set(xlabel="optimiser step", ylabel=ylabel, xlim=(0, steps * 1.03))
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if drawn[0].style != "line":
        legend(figure)
    alt = f"{ylabel} over {steps:,} steps: {', '.join(_ends(curve) for curve in drawn)}"
    return picture_of(figure, name, alt)


def confusion(name: str, matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Picture:
    """A confusion matrix: the count in each cell, shaded by its share of the row."""
    from matplotlib.patches import Rectangle

    count = len(labels)
    names = [_short(label, 18) for label in labels]
    cells, beside = min(7.0, 0.62 * count), 0.08 * max(map(len, names))
    figure, axes = figure_of((cells + beside + 0.6, cells + 0.6 + 0.7 * beside))
    for i, row in enumerate(matrix):
        for j, cell in enumerate(row):
            share = cell / max(1, sum(row))
            # Never darker than this, so that the ink can be read on it, by day and by night.
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=BLUE, alpha=0.6 * share, linewidth=0))
            if count <= 12:
                axes.text(j, i, f"{cell:,}", ha="center", va="center", color=INK)
    if count <= 40:
        upright = count <= 3 and max(map(len, names)) <= 8
        axes.set_xticks(range(count), names, rotation=0 if upright else 40, ha="center" if upright else "right")
        axes.set_yticks(range(count), names)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal", xlabel="predicted", ylabel="label")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    right = sum(matrix[i][i] for i in range(count))
    total = sum(map(sum, matrix))
    return picture_of(figure, name, f"confusion matrix of {count} classes: {right:,} of {total:,} rows on the diagonal")


def scatter(name: str, labels: Sequence[float], predictions: Sequence[float]) -> Picture:
    """Predicted numbers over the true ones, with the line where both are equal; at most DOTS of them."""
    figure, axes = figure_of((4.2, 4.0))
    apart = -(-len(labels) // DOTS)
    low, high = min(*labels, *predictions), max(*labels, *predictions)
    axes.plot([low, high], [low, high], color=ORANGE, linewidth=1, linestyle="--", label="prediction = label")
    axes.plot(labels[::apart], predictions[::apart], "o", color=BLUE, alpha=0.4, markersize=4, markeredgewidth=0)
    axes.set(xlabel="label", ylabel="prediction", aspect="equal")
    legend(figure)
    return picture_of(figure, name, f"predictions over labels of {len(labels[::apart]):,} rows")


def figure_of(size: tuple[float, float]) -> tuple["Figure", "Axes"]:
    """An empty figure of this size in inches, in our style."""
    figure, (axes,) = figures_of(size, 1, 1)
    return figure, axes


def figures_of(size: tuple[float, float], rows: int, columns: int) -> tuple["Figure", list["Axes"]]:
    """An empty figure with several axes, row by row, in our style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        grid = [axes for row in figure.subplots(rows, columns, squeeze=False) for axes in row]
    for axes in grid:
        axes.grid(color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.patch.set_visible(False)
        axes.tick_params(color=FAINT, labelcolor=INK)
        for spine in axes.spines.values():
            spine.set_color(FAINT)
    return figure, grid


def legend(figure: "Figure") -> None:
    """Above the axes, from the left; it takes height from them and no width."""
    figure.legend(frameon=False, loc="outside upper left", ncols=3, columnspacing=1.2, handlelength=1.4, fontsize=8.5)


def _noisy(axes: "Axes", curve: Curve, colour: str) -> None:
    import numpy as np

    points = np.asarray(curve.points, dtype=float)
    parts = np.array_split(points, min(BINS, len(points)))
    x, y = np.array([part.mean(axis=0) for part in parts]).T
    axes.fill_between(x, [p[:, 1].min() for p in parts], [p[:, 1].max() for p in parts], color=colour, alpha=0.15, lw=0)
    axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
    reach = len(y) // 40  # on either side; fewer at the ends
    smooth = [y[max(0, i - reach) : i + reach + 1].mean() for i in range(len(y))]
    steps = round((2 * reach + 1) * len(points) / len(y))
    axes.plot(x, smooth, color=colour, linewidth=1.8, label=f"{curve.label} (mean of {steps:,})")


def picture_of(figure: "Figure", name: str, alt: str, coloured: "Collection[Text]" = ()) -> Picture:
    """A drawn figure as both kinds of picture.

    Args:
        figure: Drawn.
        name: Of the picture.
        alt: What it shows, in words.
        coloured: Texts that keep their colours: they stand on something that has the same colour on every page.
    """
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text not in coloured:
            text.set_color(INK)
        text.set_parse_math(False)  # a label may contain dollars
    png, svg = io.BytesIO(), io.StringIO()
    # The salt: the same bytes for the same data.
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a browser has more fonts
        figure.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
        figure.set_layout_engine("none")  # what has been found for the one is right for the other
        figure.savefig(svg, format="svg", facecolor="none", metadata={"Date": None})
    return Picture(name, alt, png.getvalue(), _for_page(svg.getvalue()))


def write_alone(picture: Picture, folder: Path) -> None:
    """Write NAME.png and NAME.svg, the latter in the colours of the PNG: there is no page around it.

    Raises:
        LorakitError: The disk refuses.
    """
    svg = picture.svg
    for colour, variable in COLOURS.items():
        svg = svg.replace(variable, colour)
    write_atomic(folder / f"{picture.name}.png", picture.png)
    write_atomic(folder / f"{picture.name}.svg", svg)


def _for_page(svg: str) -> str:
    """The SVG element alone, in the page's colours, no wider than it should be, without names that another one has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="([\d.]+)pt" height="[\d.]+pt"', _most_width, svg, count=1)
    svg = re.sub(r' id="[A-Za-z][\w.]*_\d{1,5}"', "", svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, variable)
    return re.sub(r"\s*\n\s*", " ", svg)


def _most_width(size: re.Match[str]) -> str:
    return f' style="max-width: {float(size[1]) / 72 * REM:.1f}rem"'


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _ends(curve: Curve) -> str:
    return f"{curve.label} from {curve.points[0][1]:.4g} to {curve.points[-1][1]:.4g}"


def _short(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
