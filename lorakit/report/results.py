"""What the published adapter said about a split, from predictions/SPLIT.jsonl: tables, plots and single rows."""

import math
from collections.abc import Sequence
from typing import Any

from lorakit.metrics.classification import confusion, per_class
from lorakit.metrics.regression import residuals
from lorakit.report import plots
from lorakit.report.blocks import Block, Examples, Pictures, Table, Text
from lorakit.report.facts import shown

EXAMPLES = 8
REFERENCES = 3
LENGTH = 400
"""Characters of a text that are shown."""
MANY = 20
"""Classes from which on a matrix cannot be read any more: then the most frequent confusions are listed."""

Records = Sequence[dict[str, Any]]


def results(split: str, kind: str, labels: Sequence[str], records: Records) -> list[Block]:
    """What there is to see in the predictions for a split.

    Args:
        split: Its name, for the names of pictures.
        kind: Of the task.
        labels: Its classes.
        records: At least one.
    """
    if kind == "classification":
        return _classes(split, labels, records)
    if kind == "regression":
        return _numbers(split, records)
    return _texts(records)


def _classes(split: str, labels: Sequence[str], records: Records) -> list[Block]:
    index = {label: i for i, label in enumerate(labels)}
    truth, predicted = ([index[record[key]] for record in records] for key in ("label", "prediction"))
    matrix = confusion(truth, predicted, len(labels))
    wrong = [record for record in records if record["label"] != record["prediction"]]
    return [
        _per_class(labels, matrix, per_class(truth, predicted, len(labels))),
        Pictures([plots.confusion(f"confusion_{split}", matrix, labels)]),
        *_confusions(labels, matrix),
        *_rows(f"Rows predicted wrongly: {len(wrong):,} of {len(records):,}; the first {EXAMPLES}:", wrong),
    ]


def _per_class(labels: Sequence[str], matrix: list[list[int]], scores: Sequence[tuple[float, float, float]]) -> Table:
    rows = []
    for i, label in enumerate(labels):
        counts = [f"{sum(matrix[i]):,}", f"{sum(row[i] for row in matrix):,}"]
        rows.append([label, *counts, *("–" if math.isnan(score) else shown("f1", score) for score in scores[i])])
    return Table(["class", "rows", "predicted", "precision", "recall", "F1"], rows)


def _confusions(labels: Sequence[str], matrix: list[list[int]]) -> list[Block]:
    if len(labels) < MANY:
        rows = [[label, *(f"{cell:,}" for cell in row)] for label, row in zip(labels, matrix, strict=True)]
        return [Table(["label \\ predicted", *labels], rows)]
    cells = [(cell, i, j) for i, row in enumerate(matrix) for j, cell in enumerate(row) if i != j and cell]
    cells.sort(key=lambda found: -found[0])
    if not cells:
        return []
    most = [[f"{labels[i]} → {labels[j]}", f"{cell:,}"] for cell, i, j in cells[:MANY]]
    return [Text("The most frequent confusions."), Table(["label → predicted", "rows"], most)]


def _numbers(split: str, records: Records) -> list[Block]:
    finite = [record for record in records if math.isfinite(record["prediction"])]
    blocks: list[Block] = []
    if len(finite) < len(records):
        blocks.append(Text(f"{len(records) - len(finite):,} of {len(records):,} predictions are no finite number."))
    if finite:
        truth, predicted = ([record[key] for record in finite] for key in ("label", "prediction"))
        rows = [[name, f"{value:.4f}"] for name, value in residuals(truth, predicted).items()]
        blocks += [
            Pictures([plots.scatter(f"scatter_{split}", truth, predicted)]),
            Table(["prediction − label", ""], rows),
            *_rows(
                "The rows with the largest errors:", sorted(finite, key=lambda r: -abs(r["prediction"] - r["label"]))
            ),
        ]
    return blocks


def _rows(what: str, records: Records) -> list[Block]:
    """The first of these rows, each with its label and its prediction."""
    if not records:
        return []
    examples = [
        [(key, _short(_number(record[key]))) for key in ("text", "pair", "label", "prediction") if key in record]
        for record in records[:EXAMPLES]
    ]
    return [Text(what), Examples(examples)]


def _texts(records: Records) -> list[Block]:
    examples = []
    for record in records[:EXAMPLES]:
        references = record["references"][:REFERENCES]
        more = len(record["references"]) - len(references)
        pairs = [("input", _short(_prompt(record["prompt"]))), ("prediction", _short(record["prediction"]))]
        pairs += [("reference", _short(reference)) for reference in references]
        examples.append([*pairs, *([("and", f"{more} more")] if more else [])])
    count = len(records)
    which = f"the first {EXAMPLES} of {count:,} distinct ones" if count > EXAMPLES else "all distinct ones"
    return [Text(f"Inputs ({which}) with what was generated and what was expected:"), Examples(examples)]


def _prompt(prompt: str | list[dict[str, str]]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _number(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= LENGTH else f"{text[:LENGTH].rstrip()} … ({len(text):,} characters)"
