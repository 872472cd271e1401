"""Ctrl-C and SIGTERM: finish the step, save, say how to go on."""

import signal
from types import FrameType
from typing import Any

from lorakit.errors import LorakitError
from lorakit.world import World


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
    """While entered, the first SIGINT or SIGTERM is remembered; a second one acts at once, as without us.

    What this process has received and what all processes have agreed on are kept apart: a signal that arrives while
    they talk counts at the next step, and one that others have spoken of already is still this process's first.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.agreed: int | None = None
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

    def asked(self, world: World) -> bool:
        """Whether any process was asked to stop: all must leave at the same step.

        Args:
            world: All processes; each must ask.
        """
        self.agreed = world.most(self.received or 0) or None
        return self.agreed is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
