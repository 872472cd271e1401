"""Errors meant for people: what is wrong, where, and what to do. The command line prints them without a traceback."""


class LorakitError(Exception):
    """Root of every error that a user can cause and mend.

    Args:
        problems: One message per problem; each is printed on a line of its own.
    """

    exit_code = 1
    prefix = "error: "
    """What the command line puts before each problem."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RecipeError(LorakitError):
    """The recipe, or an argument of the command, is wrong."""

    exit_code = 2


class DataError(LorakitError):
    """A data file is missing, empty, malformed or does not fit the task."""


class ModelError(LorakitError):
    """The base model is missing, unreadable, or does not fit the method or the task."""


class DoesNotFit(LorakitError):
    """A run needs more memory than there is."""


class CheckpointError(LorakitError):
    """A run directory, an adapter or a checkpoint is missing, torn, or belongs to another base."""


class NewerFormat(CheckpointError):
    """A file was written by a newer lorakit: it may well be whole."""


class MergeError(LorakitError):
    """Merged or exported weights could not be written, or do not do what the adapter does."""
