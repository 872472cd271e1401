"""What a model said, row by row, for people and files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit.data.rows import ChatRow, ChoiceRow, CompletionRow, Row, TextRow, distinct_prompts, has_target
from lorakit.runtime import write_atomic
from lorakit.tasks.base import Prediction, Task


def records(task: Task, rows: Sequence[Row], predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Predictions beside their inputs and references."""
    if task.kind == "generation":
        grouped = distinct_prompts(rows)
        return [
            {"prompt": _shown(row), "prediction": text, "references": references}
            for (row, references), text in zip(grouped, predictions, strict=True)
        ]
    result = []
    for row, prediction in zip(rows, predictions, strict=True):
        assert isinstance(row, TextRow | ChoiceRow)
        record: dict[str, Any] = {"text": row.prompt if isinstance(row, ChoiceRow) else row.text}
        if isinstance(row, TextRow) and row.pair is not None:
            record["pair"] = row.pair
        record["prediction"] = _named(task, prediction)
        if row.label is not None:
            record["label"] = _named(task, row.label)
        result.append(record)
    return result


def _shown(row: Row) -> Any:
    if isinstance(row, ChatRow):
        return list(row.messages[:-1]) if has_target(row) else list(row.messages)
    assert isinstance(row, CompletionRow)
    return row.prompt


def _named(task: Task, value: Prediction) -> Prediction:
    return task.labels[value] if task.kind == "classification" and isinstance(value, int) else value


def write_records(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object per line."""
    write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
