"""One process of the benchmarks: does the job that its argument describes.

    python -m benchmarks.worker '{"kind": "train", ...}'

What it answers goes to standard output, one JSON object a line; whatever else is printed goes to standard error.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any


class Channel:
    """Lines of JSON from and to the parent. Standard output is its own: all that prints goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, **answer: Any) -> None:
        """One answer."""
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()

    def receive(self) -> dict[str, Any] | None:
        """The next order; None when there will be none."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None


Job = Callable[[dict[str, Any], Channel], None]


def job_of(kind: str) -> Job:
    """What does a kind of job; imported here alone, since each pulls in heavy packages of its own.

    Args:
        kind: train, overhead, generation, merge or growth.
    """
    from importlib import import_module

    module = {"train": "contenders", "merge": "merging"}.get(kind, kind)
    work: Job = import_module(f"benchmarks.{module}").work
    return work


def main() -> None:
    job, channel = json.loads(sys.argv[1]), Channel()
    job_of(job["kind"])(job, channel)


if __name__ == "__main__":
    main()
