"""Reading `metrics.jsonl`: what a run has logged, whatever has become of the file since."""

import json
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"
_NUMBERS = ("loss", "lr", "grad_norm")
"""Null where they were not finite."""


def read_history(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, each with `kind` and `step`; torn and damaged ones are passed over."""
    file = run / FILE
    texts = file.read_text(errors="replace").splitlines() if file.is_file() else []
    return [line for line in map(_read, texts) if _is_whole(line)]


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_whole(line: Any) -> bool:
    """Whether what is there is of the right kind; readers do without what is not."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int) or not isinstance(line.get("kind"), str):
        return False
    metrics = line.get("metrics", {})
    numbers = [line.get(name) for name in _NUMBERS]
    return isinstance(metrics, dict) and all(map(_is_number, [*numbers, *metrics.values()]))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
