"""What commands print: tables and errors."""

import sys
from collections.abc import Sequence
from typing import Any


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on a terminal; aligned plain columns in a pipe."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table

        shown = Table(*header, box=box.SIMPLE_HEAD)
        for row in rows:
            shown.add_row(*map(str, row))
        # no markup: a model may have written [/b]
        Console(highlight=False, markup=False, emoji=False).print(shown)
        return
    lines = [list(map(str, line)) for line in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_errors(problems: Sequence[str], prefix: str) -> None:
    """One red line per problem, on standard error.

    Args:
        problems: Of one LorakitError.
        prefix: Put before each.
    """
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    for problem in problems:
        print(f"{red}{prefix}{visible(problem)}{plain}", file=sys.stderr)


def visible(text: str) -> str:
    """Text with its control characters as escapes: a stranger's file that is quoted cannot steer the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
