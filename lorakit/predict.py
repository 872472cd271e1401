"""Predictions for rows that a person gives, or for a split of the task's own data."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorakit.checkpoint import RECIPE
from lorakit.data.readers import read_lines
from lorakit.data.rows import Row, per_row
from lorakit.errors import DataError
from lorakit.evaluate import Evaluation
from lorakit.progress import Progress
from lorakit.recipe import Recipe, load
from lorakit.runtime import write_atomic
from lorakit.session import Session, open_session
from lorakit.tasks.base import Task


def predict_split(
    runs: Sequence[Path], checkpoint: str | None, split: str, out: Path | None, progress: Progress
) -> Iterator[Path]:
    """Predict a split with each run; a task with a submission format (GLUE's test) writes that instead of JSON lines.

    Args:
        runs: The run directories.
        checkpoint: "step-N", or None for the published adapters.
        split: Of their tasks.
        out: A file, or, for submissions and for several runs, a directory; None prints.
        progress: Shown while it runs.

    Yields:
        The files, as each is written.

    Raises:
        DataError: A split is missing or malformed, or not whole, as its submission must be; two runs would write the
            same file; or there are several files and no directory.
    """
    _require_places([load(run / RECIPE) for run in runs if (run / RECIPE).is_file()], split, out)
    for run in runs:
        session = open_session(run, checkpoint)
        task = session.recipe.task
        # all are read first: a missing file shows now, and not after hours of predicting
        parts = [session.read(name, progress) for name in task.submission_splits(split)]
        for shortened in filter(None, [task.incomplete(part.name, len(part.rows)) for part in parts]):
            progress.say(f"warning: {shortened}")
        for part in parts:
            found = session.predict(part, progress)
            submission = task.submission(part.name, found.predictions)
            if submission is None:
                yield from _write(found, session.recipe.name, out, len(runs) > 1)
            elif out is None:
                sys.stdout.write(submission[1])
            else:
                write_atomic(out / submission[0], submission[1])
                yield out / submission[0]


def _require_places(recipes: Sequence[Recipe], split: str, out: Path | None) -> None:
    """Refuse, before anything is predicted, what would print several files or write one twice."""
    names = [name for recipe in recipes for name in _submission_names(recipe.task, split)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"--split {split}: several of these runs predict {', '.join(twice)}: give one of them")
    if out is None and len(names) > 1:
        raise DataError(f"--split {split} makes {', '.join(names)}: name a directory for them with --out")
    if names and out is not None and out.is_file():
        raise DataError(f"--out {out}: is a file, but {', '.join(names)} must be written into a directory")


def _submission_names(task: Task, split: str) -> list[str]:
    """The files that a run of the task writes for a split."""
    if split not in task.splits:
        return []  # refused when the run is read, with the splits that there are
    written = [task.submission(name, []) for name in task.submission_splits(split)]
    return [submission[0] for submission in written if submission is not None]


def predict_input(
    run: Path, checkpoint: str | None, source: str, out: Path | None, *, several: bool, progress: Progress
) -> list[Path]:
    """Predict rows from a file or standard input: JSON lines of the task's fields, or plain lines.

    Args:
        run: The run directory.
        checkpoint: "step-N", or None for the published adapter.
        source: The file, or - for standard input; blank lines are skipped.
        out: A file, or, for several runs, a directory; None prints.
        several: Whether this is one of several runs.
        progress: Shown while it runs.

    Returns:
        The files written: one record per line of the source.

    Raises:
        DataError: The file is missing or empty, or a line does not fit the task.
    """
    session = open_session(run, checkpoint)
    rows = list(_rows(session, source))
    if not rows:
        raise DataError(f"{source}: no rows")
    found = session.predict(session.of_rows(rows), progress)
    if session.recipe.task.kind == "generation":
        found = replace(found, records=per_row(rows, found.records))
    return _write(found, session.recipe.name, out, several)


def _rows(session: Session, source: str) -> Iterator[Row]:
    name = "standard input" if source == "-" else source
    for number, line in _typed() if source == "-" else read_lines(Path(source)):
        if line.strip():
            where = f"{name}:{number}"
            yield session.recipe.task.from_input(_fields(line, where), where)


def _typed() -> Iterator[tuple[int, str]]:
    """The lines of standard input; as in files, only line feeds end them."""
    for number, line in enumerate(sys.stdin, 1):
        yield number, line.removesuffix("\n").removesuffix("\r")


def _fields(line: str, where: str) -> dict[str, Any] | str:
    """The fields of a JSON line, or the line itself."""
    if not line.lstrip().startswith("{"):
        return line
    try:
        fields: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not a JSON object: {error}") from error
    return fields


def _write(found: Evaluation, name: str, out: Path | None, several: bool) -> list[Path]:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found.records)
    if out is None:
        sys.stdout.write(text)
        return []
    file = out / f"{name}.{found.split}.jsonl" if several or out.is_dir() else out
    write_atomic(file, text)
    return [file]
