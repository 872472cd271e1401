"""`lorakit score`: the official metrics of anybody's output, from files alone. One module and one line per task."""

from collections.abc import Callable

from lorakit.scoring import e2e, glue, samsum, wikisql
from lorakit.scoring.base import Files
from lorakit.tasks.base import Scores

SCORERS: dict[str, Callable[[Files], Scores]] = {
    "glue": glue.score,
    "e2e": e2e.score,
    "wikisql": wikisql.score,
    "samsum": samsum.score,
}
"""Task → what scores its files; raises DataError with file and line for what is malformed."""
