"""The heatmaps of an analysis."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorakit.analysis.found import Overlap, PairFound, RunFound
from lorakit.analysis.sites import Site
from lorakit.analysis.spectrum import ENERGY
from lorakit.report.blocks import Picture
from lorakit.report.plots import INK, ORANGE, picture_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "viridis"
"""Even in lightness, so that it says the same in grey and to colour-blind people."""
LABELS = 16
"""Ticks of an axis."""
ROW = 4
"""Panels beside one another."""


def energy(run: RunFound, name: str) -> Picture:
    """Share of ‖ΔW‖² that rank k keeps, of every matrix; a dot where it is enough.

    Args:
        run: What to draw.
        name: Of the picture.
    """
    import numpy as np

    names = list(dict.fromkeys(one.site.name for one in run.matrices))
    groups = [[one for one in run.matrices if one.site.name == name] for name in names]
    most = max(map(len, groups))
    wide = min(ROW, len(groups))
    figure, grid = _panels(-(-len(groups) // wide), wide, (2.6, max(1.3, min(4.5, 0.2 * most + 0.6))))
    every = [axes for row in grid for axes in row]
    for axes in every[len(groups) :]:
        axes.remove()
    for axes, title, group in zip(every, names, groups, strict=False):
        width = max(len(one.spectrum.values) for one in group)
        cells = np.full((len(group), width), np.nan)
        for line, one in enumerate(group):
            kept = one.kept()
            cells[line, : len(kept)] = kept
        _heat(axes, cells)
        enough = [(one.spectrum.energy_rank, line + 1) for line, one in enumerate(group) if one.spectrum.energy_rank]
        axes.plot(*zip(*enough, strict=True) if enough else ((), ()), "o", color=ORANGE, markersize=3.5)
        axes.set(title=_short(title), xlabel="rank k", aspect="auto")
        layers = ["–" if one.site.layer is None else str(one.site.layer) for one in group]
        apart = -(-len(group) // LABELS)
        axes.set_yticks(range(1, len(group) + 1)[::apart], layers[::apart])
    for first, *_ in grid:
        first.set_ylabel("layer")
    _bar(figure, every[: len(groups)], "share kept")
    alt = (
        f"share of ‖ΔW‖² of {run.label} that rank k keeps, by layer, for {', '.join(names)}; dots: where it is "
        f"{ENERGY:.0%}"
    )
    return picture_of(figure, name, alt)


def phi(pair: PairFound, sites: Sequence[Site], name: str) -> Picture | None:
    """φ(i, j) of two runs, of A above and of B below; None where there is nothing to draw.

    Args:
        pair: What to draw.
        sites: Of these matrices.
        name: Of the picture.
    """
    drawn = [site for site in sites if all(one.grid.numel() for one in pair.overlaps[site].values())]
    if not drawn:
        return None
    tall, wide = pair.overlaps[drawn[0]]["A"].grid.shape
    size = (2.6, 2.4 if tall == wide else max(1.3, min(3.2, 2.2 * tall / wide + 0.6)))
    figure, grid = _panels(2, len(drawn), size)
    for column, site in enumerate(drawn):
        for row, (factor, overlap) in enumerate(pair.overlaps[site].items()):
            axes = grid[row][column]
            _heat(axes, overlap.grid.numpy())
            axes.set(title=f"{site.label}: {factor}", aspect="auto")
            if row:
                axes.set_xlabel(f"j, {_short(pair.other)}")
    figure.supylabel(f"i, {_short(pair.one)}", fontsize=9)  # once: beside every row the names would run into each other
    _bar(figure, [axes for row in grid for axes in row], "φ(i, j)")
    ends = [f"{site.label} {factor} {_first(o)}" for site in drawn for factor, o in pair.overlaps[site].items()]
    return picture_of(figure, name, f"φ of {pair.one} and {pair.other}; φ(1,1): {', '.join(ends)}")


def _first(overlap: Overlap) -> str:
    return f"{overlap.first or 0.0:.2f}"


def _panels(rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, list[list[Axes]]]":
    """Rows of axes, each of about this size in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.titlesize": 9}):
        figure = Figure(figsize=(columns * size[0] + 0.9, rows * size[1] + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(row) for row in grid]


def _heat(axes: "Axes", cells: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> None:
    """Cells of values from 0 to 1, counted from 1, the first at the top left."""
    from matplotlib.ticker import MaxNLocator

    tall, wide = cells.shape
    extent = (0.5, wide + 0.5, tall + 0.5, 0.5)
    axes.imshow(cells, vmin=0, vmax=1, cmap=COLOURS, interpolation="nearest", extent=extent)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.tick_params(length=2, color=INK, labelcolor=INK)


def _bar(figure: "Figure", drawn: "list[Axes]", label: str) -> None:
    figure.colorbar(drawn[0].images[0], ax=drawn, label=label, pad=0.02)


def _short(text: str) -> str:
    return text if len(text) <= 32 else f"…{text[-31:]}"
