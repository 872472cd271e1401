"""The command that runs one recipe over many values: sweep."""

from pathlib import Path
from typing import Annotated

import typer

from lorakit.cli.shared import Jobs, RecipeArgument, app, progress_for, words_of
from lorakit.console import print_table

_WORDS = (
    "An axis: key=a,b,c; linked ones: key+other=a+b,c+d; with --random a range: key=log(1e-5..1e-3), "
    "key=uniform(0..0.3). One value: the same for all."
)


@app.command()
def sweep(
    recipe: RecipeArgument,
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=A,B,C | KEY=VALUE]...", help=_WORDS)] = None,
    *,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each point: train.seed, train.seed + 1, …")] = 1,
    methods: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Another axis: methods, as in compare, at their own rates.")
    ] = None,
    random: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Draw N points; a larger N later keeps them.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="18M", help="Choose every point's rank for this number of trained parameters."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="That judges; default: the one that chooses the step.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to; default sweeps/NAME.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished runs again.")] = False,
    jobs: Jobs = None,
) -> None:
    """Train a recipe at every combination of some values: one table, heatmaps and curves (the paper's Tables 5, 6, 17).

    The same command continues, and values and seeds may be added; finished runs are not done again. Quote words that
    the shell would change: 'method.targets=[q],[q,v]'.
    """
    from lorakit.sweep import Asked, failures, plan, run
    from lorakit.sweep.table import grid_table, is_grid, points_table

    names = None if methods is None else words_of(methods)
    progress = progress_for()
    planned = plan(Asked(recipe, words or [], names, random, budget, metric), progress)
    folder = out or Path("sweeps") / planned.given.recipe.name
    found = run(planned, seeds, folder, progress, overwrite=overwrite, at_once=jobs)
    if is_grid(found):
        print(f"{found.metric}:")
        print_table(*grid_table(found))
        print()
    print_table(*points_table(found))
    for note in (found.verdict(), *found.notes()):
        print(note)
    print(f"written: {folder / 'sweep.md'}")
    if error := failures(found):
        raise error
