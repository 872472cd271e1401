"""The command line: thin commands, and the only place that prints errors and exits.

Heavy imports stand inside the commands, so that `lorakit --help` answers at once.
"""

import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from lorakit import __version__
from lorakit.cli.shared import app
from lorakit.console import print_errors
from lorakit.errors import LorakitError
from lorakit.launch import be_worker, end_at_once, launched, report

# Each adds its commands to the application, and `--help` lists them in this order.
# isort: off
from lorakit.cli import recipes, runs, checks, compare, sweep, reproduce, results, adapters, analyze
# isort: on

__all__ = [
    "adapters",
    "analyze",
    "app",
    "checks",
    "compare",
    "main",
    "recipes",
    "reproduce",
    "results",
    "runs",
    "sweep",
]


def _version(asked: bool) -> None:
    if asked:
        print(f"lorakit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune language models with LoRA from YAML recipes."""


@app.command(hidden=True)
def worker(
    keep_base: Annotated[bool, typer.Option("--keep-base", help="The next run has the same base from memory.")] = False,
) -> None:
    """Runs that come as lines of standard input, in turn: started by compare, sweep and reproduce."""
    from lorakit.trials.serve import serve

    serve(_exit_code, keep_base)


def _exit_code(arguments: Sequence[str]) -> int:
    """Of a command that is run in this process."""
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit 0, 1 (the run failed), 2 (the recipe or an argument is wrong), or 128 + signal."""
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as end:
        if arguments is None and launched():
            end_at_once(end.code)
        raise


def _run(given: list[str]) -> None:
    debug = "--debug" in given
    be_worker()
    try:
        app([word for word in given if word != "--debug"], prog_name="lorakit", standalone_mode=True)
    except LorakitError as error:
        _tell(error, error.problems, error.prefix, debug)
        sys.exit(error.exit_code)
    except Exception as error:
        _tell(error, [_unexpected(error, debug)], LorakitError.prefix, debug)
        sys.exit(1)


def _unexpected(error: Exception, debug: bool) -> str:
    """What is no `LorakitError`: memory that ran out where nothing can be made smaller, or a mistake of ours."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's; torch may not be there
        first = str(error).split(". ")[0].rstrip(".") or "no more is to be had"
        return (
            f"out of memory: {first}; try a smaller train.micro_batch_size or task.max_length, "
            "train.gradient_checkpointing=true, or model.dtype=bfloat16"
        )
    return f"unexpected {type(error).__name__}: {error}" + ("" if debug else "; --debug shows where")


def _tell(error: Exception, problems: Sequence[str], prefix: str, debug: bool) -> None:
    if report(problems, error, prefix, traceback.format_exc()):
        return
    if int(os.environ.get("RANK", "0")):  # what all have met is told by the first: its launcher ends this one meanwhile
        time.sleep(1)
    if debug:
        traceback.print_exc()
    print_errors(problems, prefix)
