"""`metrics.jsonl`: one line per log, evaluation and save, in the order in which they happened."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorakit.journal import FILE, read_history
from lorakit.runtime import disk_errors, json_ready, sync, write_atomic


class History:
    """A run's log; every line has `kind` and `step`.

    Args:
        run: The run directory.
        enabled: False on every process but the first.

    Attributes:
        forward: Gets each line's kind, step and values too, once it is written.
        guard: Asked before each line, and before each checkpoint; raises where the directory is no longer the run's.
    """

    def __init__(self, run: Path, enabled: bool = True) -> None:
        self.file = run / FILE
        self.enabled = enabled
        self.forward: Callable[[str, int, dict[str, Any]], None] | None = None
        self.guard: Callable[[], None] = _nothing

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a line, and tell the trackers, where there are some."""
        if self.enabled:
            self.guard()
            with disk_errors(self.file), self.file.open("a") as file:
                file.write(json.dumps(json_ready({"kind": kind, "step": step, **values})) + "\n")
            if self.forward is not None:
                self.forward(kind, step, values)

    def flush(self) -> None:
        """Make what is written survive a power failure: a checkpoint on the disk must find its lines there."""
        if self.enabled:
            self.guard()
            with disk_errors(self.file):
                sync(self.file)

    def rewind(self, step: int, evaluated: bool) -> None:
        """Forget what happened after a checkpoint, which the resumed run will do again.

        Args:
            step: The checkpoint's; -1 for a run that starts afresh.
            evaluated: Whether the evaluation at that step is part of the checkpoint.
        """
        if not self.enabled:
            return
        kept = []
        for line in read_history(self.file.parent):
            undone = line["step"] == step and line["kind"] in ("eval", "save") and not evaluated
            if line["step"] <= step and line["kind"] != "final" and not undone:
                kept.append(json.dumps(line) + "\n")
        write_atomic(self.file, "".join(kept))


def _nothing() -> None:
    """The guard of a history whose directory nobody watches."""
