"""A contender's side of the turns: some steps are ordered, and their time, losses and memory are told."""

import time
from typing import Any

from benchmarks.memory import Peak
from benchmarks.worker import Channel


class Stop(Exception):
    """Nobody will order anything any more."""


class Refused(Exception):
    """A contender cannot do this training; says why, for the reader of the results."""


class Turns:
    """Lets the caller's loop go on for as many steps as were ordered, and reports them.

    Args:
        channel: To the parent.
        model: Loaded, and not yet trained: memory is counted above it.
    """

    def __init__(self, channel: Channel, model: Any) -> None:
        self._channel = channel
        self._losses: list[Any] = []
        self._tokens = self._left = 0
        self._peak = Peak(model)
        channel.send(ready=True)
        self._wait()

    def done(self, loss: Any, tokens: int) -> None:
        """A step is over; returns when the next one may begin.

        Args:
            loss: Mean over the step's targets; a tensor is only read at the end of the turn, so as not to wait for it.
            tokens: Read, padding not counted.

        Raises:
            Stop: There will be no next one.
        """
        self._losses.append(loss)
        self._tokens += tokens
        self._left -= 1
        if self._left:
            return
        losses = [float(one) for one in self._losses]
        _synchronize()
        seconds = time.perf_counter() - self._began
        self._channel.send(seconds=seconds, tokens=self._tokens, losses=losses, peak_bytes=self._peak.bytes())
        self._losses, self._tokens = [], 0
        self._wait()

    def _wait(self) -> None:
        order = self._channel.receive()
        if order is None:
            raise Stop
        self._left = int(order["steps"])
        self._began = time.perf_counter()


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
