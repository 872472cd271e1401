"""The command that judges a recipe's number: reproduce."""

from pathlib import Path
from typing import Annotated

import typer

from lorakit.cli.shared import Jobs, app, progress_for, words_of
from lorakit.console import print_table
from lorakit.errors import LorakitError, RecipeError


@app.command()
def reproduce(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="One or several; overrides hold for all.")
    ],
    *,
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Rows: names of methods, `all` that have a number; default: its own."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each row; default: as many as reported.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to; default reproduce/NAME, reproduce for several.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished runs again.")] = False,
    jobs: Jobs = None,
) -> None:
    """Run a recipe as often as its number was measured, and judge: inside its tolerance, above, below."""
    from lorakit.trials.settings import read

    files, overrides = _sorted(recipes)
    given = []
    problems: list[str] = []
    for file in files:
        try:
            given.append(read(file, overrides))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(*dict.fromkeys(problems))
    # Behind a recipe's errors, which nobody should have to wait for.
    from lorakit.reproduce import Request
    from lorakit.reproduce import reproduce as run_reproduction

    names = None if methods is None else words_of(methods)
    found = run_reproduction(Request(given, names, seeds, out, overwrite, jobs), progress_for())
    print_table(*found.table())
    for line in found.lines():
        print(line)
    print(f"written: {found.folder / 'reproduce.md'}")
    if not found.succeeded:
        bad = [one.entry.title for one in found.outcomes if one.judged.verdict in ("below", "failed")]
        raise LorakitError(f"below, or failed: {'; '.join(bad)}; the same command tries failed runs again")


def _sorted(words: list[str]) -> tuple[list[Path], list[str]]:
    """(recipes, overrides): a word with an equals sign is an override, unless a file has that name."""
    overrides = [word for word in words if "=" in word and not Path(word).is_file()]
    files = [Path(word) for word in words if word not in overrides]
    if not files:
        raise RecipeError("give a recipe: lorakit reproduce recipes/NAME.yaml")
    return files, overrides
