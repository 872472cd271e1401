"""Commands that make a run of other adapters: import, combine."""

from pathlib import Path
from typing import Annotated

import typer

from lorakit.cli.shared import app, words_of
from lorakit.console import print_table
from lorakit.errors import RecipeError


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="PEFT's directory, or a loralib checkpoint.")],
    *,
    out: Annotated[Path, typer.Option(help="The run directory to make.")],
    base: Annotated[str | None, typer.Option(help="The base that it was trained on; default: the recipe's.")] = None,
    alpha: Annotated[float | None, typer.Option(help="loralib's lora_alpha, which its files do not hold.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Names the task, so that the run can be evaluated.")] = None,
    targets: Annotated[
        str | None, typer.Option(metavar="Q,…", help="Which of a loralib file's fused q, k, v were adapted.")
    ] = None,
) -> None:
    """Another tool's adapter as a run directory, which merge, export, combine and (with a recipe) eval take."""
    from lorakit.imports import import_adapter

    report = import_adapter(file, out, base, alpha, recipe, words_of(targets) if targets is not None else None)
    print_table(["imported", str(out)], report.rows())
    for note in report.notes:
        print(note)


@app.command()
def combine(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Runs of one base.")],
    *,
    out: Annotated[Path, typer.Option(help="The run directory to make.")],
    weights: Annotated[str | None, typer.Option(metavar="W,W,…", help="A factor for each run; default: all 1.")] = None,
) -> None:
    """The sum of several adapters as one run: exact, the ranks add up; merge, export and eval take it."""
    from lorakit.combine import combine as add

    report = add(runs, out, _numbers(weights) if weights else None)
    print_table(["combined", str(out)], report.rows())


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"--weights {text}: give numbers with commas between, such as 1,0.5") from error
