"""The tables of a sweep: every point in a line; and of two axes the form of the paper's Table 6."""

from lorakit.report import table as markdown_table
from lorakit.sweep.axes import Axis, said
from lorakit.sweep.budget import rank_of
from lorakit.sweep.found import Row, Sweep, value_text


def points_table(found: Sweep) -> tuple[list[str], list[list[str]]]:
    """(header, rows) with a line per point."""
    ranks = ["rank"] if found.budget is not None else []
    header = [*found.titles, *ranks, "trained", *found.metrics, "training", "best step"]
    return header, [_line(row, found) for row in found.rows]


def _line(row: Row, found: Sweep) -> list[str]:
    failed = f" ({len(row.failures)} failed)" if row.failures and row.best_steps else ""
    return [
        *map(said, row.planned.point.values),
        *([str(rank_of(row.planned.recipe))] if found.budget is not None else []),
        f"{row.planned.parameters:,}",
        *(value_text(metric, row) + failed for metric in found.metrics),
        "–" if row.seconds is None else f"{row.seconds:,.1f} s",
        _span(row.best_steps),
    ]


def _span(steps: tuple[int, ...]) -> str:
    if not steps:
        return "–"
    low, high = min(steps), max(steps)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def across(axes: list[Axis]) -> tuple[int, int]:
    """Which two axes lie down and across: those with the most values, numbers across."""
    order = sorted(range(len(axes)), key=lambda index: -len(axes[index].values))
    down, over = sorted(order[:2])
    return (over, down) if axes[down].number and not axes[over].number else (down, over)


def is_grid(found: Sweep) -> bool:
    """Whether every combination of two axes was run."""
    return len(found.axes) == 2 and not found.drawn


def grid_table(found: Sweep) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of a sweep over two axes: one down, one across, the metric that judges in the cells."""
    down, over = across(found.axes)
    cells = {(row.planned.point.places[down], row.planned.point.places[over]): found.value(row) for row in found.rows}
    header = [f"{found.titles[down]} \\ {found.titles[over]}", *map(said, found.axes[over].values)]
    lines = [
        [said(value), *(cells[i, j] for j in range(len(found.axes[over].values)))]
        for i, value in enumerate(found.axes[down].values)
    ]
    return header, lines


def markdown_tables(found: Sweep) -> list[str]:
    """Both, as Markdown, the best in bold."""
    ranking = found.ranking()
    best = ranking[0] if ranking else None
    texts = []
    if is_grid(found):
        strong = set()
        if best is not None:
            down, over = across(found.axes)
            places = best.planned.point.places
            strong = {(places[down], places[over] + 1)}
        texts += [f"{found.metric}:\n", markdown_table(*grid_table(found), "---:", strong)]
    column = points_table(found)[0].index(found.metric)
    strong = {(found.rows.index(best), column)} if best is not None else set()
    return [*texts, markdown_table(*points_table(found), "---:", strong)]
