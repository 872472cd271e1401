"""The plots of a sweep: curves over numbers, heatmaps over two axes, points over what was drawn."""

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from lorakit.report import shown
from lorakit.report.blocks import Picture
from lorakit.report.facts import on_paper_scale
from lorakit.report.plots import BLUE, INK, ORANGE, figure_of, figures_of, legend, picture_of
from lorakit.sweep.axes import Axis, said
from lorakit.sweep.found import Row, Sweep
from lorakit.sweep.table import across
from lorakit.trials.summary import lower_is_better
from lorakit.yamltree import Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

LINES = [(BLUE, "o"), (ORANGE, "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#56b4e9", "P"), (INK, "X")]
"""Colours of Okabe and Ito that colour-blind people tell apart, each with a marker of its own."""
PANELS = 12
"""Heatmaps, or scatter plots, of one picture."""
WIDE_SPAN = 20
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""
_BESIDE = 3
"""Panels in a row."""
_APART = 0.008
"""Between the points of two lines at the same value, as a share of the axis."""
_TICKS = 10
"""Values that an axis names one by one."""
_READABLE = 0.179
"""The relative luminance on which black and white text have the same contrast (WCAG 2.2)."""


def pictures(found: Sweep) -> tuple[list[Picture], list[str]]:
    """What there is to draw, and notes on what there is not.

    Args:
        found: With any number of failed points.
    """
    if not found.ranking():
        return [], []
    if found.drawn:
        return [_scatter(found)], []
    drawn, notes = [], []
    numbers = [index for index, axis in enumerate(found.axes) if axis.number]
    names = [index for index, axis in enumerate(found.axes) if not axis.number]
    if len(found.axes) == 1 or (len(numbers) == 1 and len(names) == 1):
        if not names or len(numbers) == 0 or len(found.axes[names[0]].values) <= len(LINES):
            drawn.append(_curve(found, (numbers or names)[0], names[0] if numbers and names else None))
        else:
            notes.append(f"no curves: more than {len(LINES)} lines cannot be told apart")
    if len(found.axes) > 1:
        others = math.prod(len(axis.values) for axis in found.axes) // math.prod(
            len(found.axes[index].values) for index in across(found.axes)
        )
        if others <= PANELS:
            drawn.append(_heatmap(found))
        else:
            notes.append(f"no heatmaps: {others} panels, more than {PANELS}, would be needed")
    return drawn, notes


def _scaled(found: Sweep, row: Row) -> tuple[float, float | None]:
    """Mean and deviation on the paper's scale."""
    mean, std = row.metrics[found.metric]
    return on_paper_scale(found.metric, mean), None if std is None else on_paper_scale(found.metric, std)


def _points(axes: "Axes", spots: Sequence[tuple[float, float, float | None]], **style: Any) -> None:
    """Points (place, mean, deviation), with error bars where there are deviations."""
    deviations = [std for _, _, std in spots if std is not None]
    spread = deviations if len(deviations) == len(spots) else None
    axes.errorbar(
        [place for place, _, _ in spots],
        [mean for _, mean, _ in spots],
        yerr=spread,
        capsize=2.5,
        elinewidth=1,
        **style,
    )


def _curve(found: Sweep, along: int, of: int | None) -> Picture:
    """The metric over one axis, a line for each value of another; without lines where the values are no numbers."""
    axis = found.axes[along]
    figure, axes = figure_of((5.6, 3.5))
    lines: Sequence[tuple[Value, ...] | None] = [None] if of is None else found.axes[of].values
    alts: list[str] = []
    for line, (colour, marker) in zip(lines, LINES, strict=False):
        rows = [row for row in found.ranking() if of is None or row.planned.point.values[of] == line]
        spots = [(_place(axis, row.planned.point.values[along]), *_scaled(found, row)) for row in rows]
        spots.sort(key=lambda spot: spot[0])
        if not spots:
            continue
        name = None if line is None else said(line)
        beside = _APART * (len(alts) - (len(lines) - 1) / 2)  # so that error bars can be told apart
        spots = [(_moved(axis, place, beside), mean, std) for place, mean, std in spots]
        style = {"color": colour, "marker": marker, "markersize": 5, "label": name}
        _points(axes, spots, linestyle="-" if axis.number else "", linewidth=1.4, **style)
        alts.append(f"{name or found.metric} {', '.join(f'{mean:.4g}' for _, mean, _ in spots)}")
    _scale(axes, axis)
    first, *linked = found.titles[along].split(" + ")
    axes.set(xlabel=f"{first}, and with it {', '.join(linked)}" if axis.number and linked else found.titles[along])
    axes.set_ylabel(found.metric)
    if of is not None:
        legend(figure)
    return picture_of(figure, "curve", f"{found.metric} over {found.titles[along]}: {'; '.join(alts)}")


def _heatmap(found: Sweep) -> Picture:
    """A panel with numbers in its cells for each combination of the axes that lie neither down nor across."""
    down, over = across(found.axes)
    others = [index for index in range(len(found.axes)) if index not in (down, over)]
    combinations = list(product(*(range(len(found.axes[index].values)) for index in others)))
    means = [_scaled(found, row)[0] for row in found.ranking()]
    high, wide = len(found.axes[down].values), len(found.axes[over].values)
    names = max(len(said(value)) for value in found.axes[down].values)
    size = (0.72 * wide + 0.07 * names + 0.5, 0.5 * high + 0.7)
    figure, panels = _panels(len(combinations), min(_BESIDE, len(combinations)), size)
    written: list[Text] = []
    for panel, combination in zip(panels, combinations, strict=True):
        cells: dict[tuple[int, int], Row] = {}
        for row in found.ranking():
            places = row.planned.point.places
            if tuple(places[index] for index in others) == combination:
                cells[places[down], places[over]] = row
        written += _cells(panel, found, cells, (min(means), max(means)))
        parts = [(found.titles[i], said(found.axes[i].values[j])) for i, j in zip(others, combination, strict=True)]
        panel.set_title("\n".join(f"{title} {value}" for title, value in parts), fontsize=9)
        panel.set(xlabel=found.titles[over], ylabel=found.titles[down])
    figure.suptitle(found.metric, fontsize=10)
    text = "; ".join(f"{row.title}: {found.value(row)}" for row in found.rows)
    return picture_of(figure, "heatmap", f"{found.metric}: {text}", set(written))


def _cells(axes: "Axes", found: Sweep, cells: dict[tuple[int, int], Row], ends: tuple[float, float]) -> "list[Text]":
    """Coloured cells with mean and deviation; what failed stays empty. Returns the texts in them."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    down, over = across(found.axes)
    shape = (len(found.axes[down].values), len(found.axes[over].values))
    map_ = colormaps["viridis_r" if lower_is_better(found.metric) else "viridis"]
    level = Normalize(*ends) if ends[0] < ends[1] else Normalize(ends[0] - 1, ends[1] + 1)
    colours = np.ones((*shape, 4))
    colours[..., 3] = 0.0
    written = []
    for place, row in cells.items():
        mean, std = _scaled(found, row)
        colours[place] = map_(level(mean))
        numbers = [shown(found.metric, row.metrics[found.metric][0])]
        if std is not None:
            numbers.append(f"± {shown(found.metric, row.metrics[found.metric][1])}")
        ink = "#000000" if _luminance(colours[place][:3]) > _READABLE else "#ffffff"
        text = "\n".join(numbers)
        written.append(axes.text(place[1], place[0], text, ha="center", va="center", color=ink, fontsize=8))
    for place in product(range(shape[0]), range(shape[1])):
        if place not in cells:
            axes.text(place[1], place[0], "failed", ha="center", va="center", fontsize=8)
    axes.imshow(colours, interpolation="nearest", aspect="auto")
    for set_ticks, index in ((axes.set_yticks, down), (axes.set_xticks, over)):
        names = [_short(said(value)) for value in found.axes[index].values]
        set_ticks(range(len(names)), names)
    if max(len(said(value)) for value in found.axes[over].values) > 8:
        axes.tick_params(axis="x", labelrotation=30)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return written


def _scatter(found: Sweep) -> Picture:
    """A panel per axis with all points, the best ringed."""
    shown_axes = list(zip(range(PANELS), found.axes, found.titles, strict=False))
    figure, panels = _panels(len(shown_axes), min(_BESIDE, len(shown_axes)), (2.7, 2.5))
    best = found.ranking()[0]
    for panel, (index, axis, title) in zip(panels, shown_axes, strict=True):
        spots = [(_place(axis, row.planned.point.values[index]), *_scaled(found, row)) for row in found.ranking()]
        _points(panel, spots, fmt="o", color=BLUE, markersize=4.5, alpha=0.8)
        ringed = (_place(axis, best.planned.point.values[index]), _scaled(found, best)[0])
        panel.plot(*ringed, "o", markersize=10, color=ORANGE, fillstyle="none")
        _scale(panel, axis)
        panel.set_xlabel(title)
    for panel in panels[::_BESIDE]:
        panel.set_ylabel(found.metric)
    alt = f"{found.metric} of {len(found.ranking())} points over {', '.join(found.titles)}; ringed: {best.title}"
    return picture_of(figure, "scatter", alt)


def _panels(count: int, beside: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """So many axes of about this size in inches, in rows."""
    rows = -(-count // beside)
    figure, grid = figures_of((beside * size[0] + 0.3, rows * size[1] + 0.2), rows, beside)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _place(axis: Axis, value: tuple[Value, ...]) -> float:
    """Where a value stands on its axis: itself where it is a number, else its index."""
    first = value[0]
    if axis.range or axis.number:
        assert isinstance(first, int | float)
        return float(first)
    return float(axis.values.index(value))


def _scale(axes: "Axes", axis: Axis) -> None:
    """A logarithmic scale for wide spans, and a tick for each of a few values."""
    if axis.range is None and not axis.number:
        names = [_short(said(value)) for value in axis.values]
        axes.set_xticks(range(len(names)), names, rotation=30 if sum(map(len, names)) > 40 else 0)
        axes.set_xlim(-0.5, len(names) - 0.5)
        return
    places = [_place(axis, value) for value in axis.values]
    if _logarithmic(axis):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda place, _: f"{place:g}")
    if places and len(places) <= _TICKS:
        axes.set_xticks(places, [f"{place:,g}" if place == int(place) else f"{place:g}" for place in places])
        axes.minorticks_off()


def _logarithmic(axis: Axis) -> bool:
    """Whether equal factors are equally long: where the values span several of them."""
    if axis.range:
        return axis.range.log or (axis.range.low > 0 and axis.range.high / axis.range.low > WIDE_SPAN)
    places = [_place(axis, value) for value in axis.values]
    return min(places) > 0 and max(places) / min(places) > WIDE_SPAN


def _moved(axis: Axis, place: float, share: float) -> float:
    """A place on an axis of numbers, moved by a share of the axis."""
    if not axis.number:
        return place
    places = [_place(axis, value) for value in axis.values]
    if _logarithmic(axis):
        return float(place * (max(places) / min(places)) ** share)
    return place + share * (max(places) - min(places))


def _luminance(colour: "Sequence[float]") -> float:
    """Relative luminance of red, green and blue from 0 to 1 (WCAG 2.2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"
