"""Commands that prove a promise on this machine: check resume."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from lorakit.cli.shared import Overrides, RecipeArgument, app, progress_for
from lorakit.console import print_table
from lorakit.errors import LorakitError, RecipeError

check = typer.Typer(no_args_is_help=True, help="Prove a promise on this machine.")
app.add_typer(check, name="check")


@check.callback()
def _checks() -> None:
    """Prove a promise on this machine."""


@check.command()
def resume(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    *,
    steps: Annotated[int, typer.Option(metavar="N", help="2N steps, against N, a kill, and the rest.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Keep the runs here.")] = None,
) -> None:
    """Kill a run of a recipe, continue it, and compare it with one that was never interrupted."""
    from lorakit.recipe import load

    loaded = load(recipe, overrides or [])
    from lorakit.check import check_resume  # behind a recipe's errors, which nobody should have to wait for

    with tempfile.TemporaryDirectory(prefix="lorakit-check-") as scratch:
        if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RecipeError(f"{out} exists and is not empty; choose another --out")
        found = check_resume(loaded, steps, out or Path(scratch), progress_for())
    print_table(
        ["what", "of the whole run", "the resumed run"],
        [(one.what, one.amount, "the same" if one.difference is None else "differs") for one in found],
    )
    if different := [f"{one.what}: {one.difference}" for one in found if one.difference is not None]:
        raise LorakitError(*different, "a resumed run is not the whole run here; on a GPU some kernels are not exact")
    print(f"exact: {2 * steps} steps = {steps + 1} steps, SIGKILL, and the rest from step {steps}")
