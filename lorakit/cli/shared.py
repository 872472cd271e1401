"""What the commands share: the application, arguments that several take, and where progress is shown."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lorakit.progress import Progress

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that train has written.")]
Checkpoint = Annotated[
    str | None, typer.Option(metavar="step-N", help="Use this checkpoint instead of the published adapter.")
]
Split = Annotated[str, typer.Option(help="train, validation, validation_mismatched, test, test_mismatched.")]
RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. train.lr=1e-4")]
Jobs = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Runs at the same time; default one per GPU, else one.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def words_of(text: str) -> list[str]:
    """Words joined by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def progress_for(quiet: bool = False) -> "Progress":
    """A live bar on a terminal, plain lines elsewhere; nothing where `quiet`, or where another process speaks."""
    import os

    from lorakit.progress import Silent, for_terminal

    return Silent() if quiet else for_terminal(int(os.environ.get("RANK", "0")) == 0)
