"""`lorakit score`: the official metrics of anybody's output, from files alone. One module and one line per task."""

from collections.abc import Callable

from lorakit.scoring.base import Files
from lorakit.tasks.base import Scores

SCORERS: dict[str, Callable[[Files], Scores]] = {}
"""Task → what scores its files; raises DataError with file and line for what is malformed."""
