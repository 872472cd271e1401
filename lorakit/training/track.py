"""`train.track`: what metrics.jsonl gets goes to experiment trackers too, through Accelerate.

The file stays the truth: nothing is read back from a tracker.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lorakit.recipe import flat
from lorakit.training.setup import Run

_OF_A_STEP = ("loss", "lr", "grad_norm", "epoch", "tokens", "seconds")


@contextmanager
def tracking(run: Run) -> Iterator[None]:
    """While entered, the run's history goes to the trackers that its recipe names.

    Entered after a resumed run has found its step: TensorBoard then drops what the interrupted run wrote of later
    steps, which this one does again. Other trackers begin a run of their own.
    """
    if not run.recipe.train.track:
        yield
        return
    accelerator = run.trainee.accelerator
    config = {key: value for key, value in flat(run.recipe).items() if isinstance(value, bool | int | float | str)}
    accelerator.init_trackers(run.recipe.name, config, {"tensorboard": {"purge_step": run.state.step + 1}})
    run.history.forward = _Forward(accelerator, run.state.step)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:  # end_training() would also part the processes
            tracker.finish()


class _Forward:
    """Lines of the history → named numbers of a step.

    Args:
        accelerator: With its trackers started.
        step: Where the run stands.
    """

    def __init__(self, accelerator: Any, step: int) -> None:
        self.accelerator, self.step = accelerator, step

    def __call__(self, kind: str, step: int, line: dict[str, Any]) -> None:
        # The final evaluation is of the published step, but some trackers refuse to go back.
        self.step = max(self.step, step)
        if found := numbers(kind, line):
            self.accelerator.log(found, step=self.step)


def numbers(kind: str, line: dict[str, Any]) -> dict[str, float]:
    """What trackers are told of a line of the history: `train/loss`, `validation/accuracy`, `final/validation/loss`."""
    if kind == "log":
        named = {f"train/{name}": line[name] for name in _OF_A_STEP}
    elif kind in ("eval", "final"):
        place = line["split"] if kind == "eval" else f"final/{line['split']}"
        named = {f"{place}/{name}": value for name, value in line["metrics"].items()}
    else:
        named = {}
    return {name: value for name, value in named.items() if math.isfinite(value)}
