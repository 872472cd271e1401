"""Commands that set methods side by side: compare, latency."""

from pathlib import Path
from typing import Annotated

import typer

from lorakit.cli.shared import Jobs, Json, Overrides, RecipeArgument, app, progress_for, words_of
from lorakit.console import print_table
from lorakit.errors import LorakitError, RecipeError

_METHODS = "Names, joined by commas: lora, full, …; a combination as lora+preembed."


@app.command()
def compare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    *,
    methods: Annotated[str, typer.Option(metavar="NAME,…", help=_METHODS)],
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method: train.seed, train.seed + 1, …")] = 1,
    out: Annotated[Path | None, typer.Option(help="Where to; default compare/NAME.")] = None,
    jobs: Jobs = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished runs again.")] = False,
) -> None:
    """Train a recipe with several methods, and set them into one table as the paper's."""
    from lorakit.trials.settings import read

    given = read(recipe, overrides or [])
    # Behind a recipe's errors, which nobody should have to wait for.
    from lorakit.compare import Wanted
    from lorakit.compare import compare as run_comparison

    folder = out or Path("compare") / given.recipe.name
    found = run_comparison(given, Wanted(words_of(methods), seeds, jobs, overwrite), folder, progress_for())
    print_table(*found.table())
    for note in found.notes():
        print(note)
    print(f"written: {folder / 'compare.md'}")
    if failures := found.failures:
        raise LorakitError(*failures, f"{len(failures)} runs failed; the same command tries them again")


@app.command()
def latency(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    *,
    methods: Annotated[str, typer.Option(metavar="NAME,…", help=_METHODS)] = "lora,houlsby,lin",
    batch: Annotated[str, typer.Option(metavar="N,…", help="Rows per pass.")] = "1,16,32",
    length: Annotated[str, typer.Option(metavar="N,…", help="Tokens per row.")] = "128,256,512",
    trials: Annotated[int, typer.Option(min=1, help="Passes of each variant; the median counts.")] = 20,
    json_: Json = False,
) -> None:
    """Time a forward pass: base, merged and unmerged LoRA, adapters (the paper's Table 1)."""
    import json
    from dataclasses import asdict

    from lorakit.latency import Deployed, Grid, deploy, measure, prepare_base, table
    from lorakit.trials.settings import check_names, read, recipe_for

    given, names = read(recipe, overrides or []), words_of(methods)
    check_names(given, names)
    grid = Grid(_numbers("--batch", batch), _numbers("--length", length), trials)
    base = prepare_base(given.recipe)
    deployed: list[Deployed] = []
    failed: dict[str, str] = {}
    for name in names:
        try:
            deployed += deploy(base, name, recipe_for(given, name, given.recipe.train.seed).method, both=True)
        except LorakitError as error:
            failed[name] = "; ".join(error.problems).removeprefix(f"{name}: ")
    if deployed:
        cells = measure(base, deployed, grid, progress_for(quiet=json_))
        facts = {"device": str(base.model.device), "trials": trials, "cells": list(map(asdict, cells))}
        if json_:
            print(json.dumps(facts | {"failed": failed}, ensure_ascii=False))
        else:
            print_table(*table(cells))
            print(f"batch × tokens; the median of {trials} passes on {base.model.device}, {base.model.dtype}")
    if failed:
        raise LorakitError(*(f"{name}: {reason}" for name, reason in failed.items()))


def _numbers(option: str, text: str) -> list[int]:
    words = words_of(text)
    if not words or not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise RecipeError(f"{option}: got {text!r}; give numbers above 0, joined by commas, as in 1,16,32")
    return [int(word) for word in words]
