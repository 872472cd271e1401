"""The plot of a comparison: the metric against the number of trained parameters."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorakit.compare.table import Row
from lorakit.report.blocks import Picture
from lorakit.report.facts import on_paper_scale
from lorakit.report.plots import BLUE, INK, figure_of, picture_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

SIZE = (6.4, 4.0)
_NEAR = [(8, 5), (8, -11), (-8, 5), (-8, -11)]
"""Where a name stands beside its point, in points of 1/72 inch; on the left it ends there."""
_FAR = [
    (round(far * math.cos(angle)), round(far * math.sin(angle)))
    for far in (26, 40, 55, 70, 90, 110)
    for angle in (math.pi * part / 8 for part in range(16))
]
"""Where it stands when there is no room, with a line to the point."""


def plot(rows: Sequence[Row], metric: str) -> Picture | None:
    """Points with error bars over a logarithmic axis, each with its method's name; None where there is nothing to draw.

    Args:
        rows: Of the table.
        metric: One of theirs.
    """
    drawn = [row for row in rows if row.parameters and not math.isnan(row.metrics[metric][0])]
    if not drawn:
        return None
    figure, axes = figure_of(SIZE)
    points = [(float(row.parameters or 0), on_paper_scale(metric, row.metrics[metric][0])) for row in drawn]
    for point, row in zip(points, drawn, strict=True):
        spread = on_paper_scale(metric, row.metrics[metric][1] or 0)
        axes.errorbar(*point, yerr=spread or None, fmt="o", color=BLUE, markersize=6, capsize=3, elinewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda count, _: _short(count))
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    axes.set_xlim(low / 3, high * 4)
    axes.margins(y=0.25)
    axes.set(xlabel="trained parameters, without the task's head", ylabel=metric)
    _label(figure, axes, points, [row.name for row in drawn])
    values = ", ".join(
        f"{row.name} {value:.2f} with {row.parameters:,}" for row, (_, value) in zip(drawn, points, strict=True)
    )
    return picture_of(figure, "compare", f"{metric} against trained parameters: {values}")


def _label(figure: "Figure", axes: "Axes", points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Write each name beside its point, in the first place around it where it covers no point and no other name."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    taken: list[Bbox] = [_around(axes, point) for point in points]
    frame = axes.get_window_extent()
    for point, name in sorted(zip(points, names, strict=True), key=lambda item: item[0]):
        for place in (*_NEAR, *_FAR):
            line = {"arrowstyle": "-", "color": INK, "linewidth": 0.4, "shrinkB": 4} if place in _FAR else None
            side = "left" if place[0] >= 0 else "right"
            text = axes.annotate(
                name, point, xytext=place, textcoords="offset points", ha=side, fontsize=8.5, arrowprops=line
            )
            text.set_in_layout(False)
            text.get_window_extent()  # puts it to its place; this box has the line in it, the next one has not
            box = Text.get_window_extent(text)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            text = axes.annotate(name, point, xytext=_NEAR[0], textcoords="offset points", fontsize=8.5)
        taken.append(Text.get_window_extent(text))


def _around(axes: "Axes", point: tuple[float, float]) -> "Bbox":
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform(point)
    reach = 6 * axes.figure.dpi / 72
    return Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)


def _short(count: float) -> str:
    """10k, 1M, 1B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:g}{name}"
    return f"{count:g}"
