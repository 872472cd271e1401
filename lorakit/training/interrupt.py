"""Ctrl-C and SIGTERM: finish the step, save, say how to go on."""

import signal
from types import FrameType
from typing import Any

from lorakit.errors import LorakitError


class Interrupted(LorakitError):
    """The run was asked to stop, and did so with a checkpoint.

    Args:
        number: The signal's.
        message: What was saved and how to continue.
    """

    prefix = ""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopEvaluation(Exception):
    """Raised out of an evaluation when the run has been asked to stop; it changes no state, so nothing is lost."""


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is remembered; a second one acts at once, as without us."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Install the handlers, where this is the main thread (tests may run elsewhere)."""
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._remember)
            except ValueError:
                break
        return self

    def __exit__(self, *error: object) -> None:
        """Put the previous handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
