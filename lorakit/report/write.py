"""Writing the report: everything but report.json is made from the files of the run directory alone."""

import json
from pathlib import Path
from typing import Any

from lorakit.errors import CheckpointError
from lorakit.report.html import html
from lorakit.report.markdown import markdown
from lorakit.report.page import page
from lorakit.runtime import json_ready, write_atomic

PLOTS = "plots"


def write_report(run: Path, report: dict[str, Any]) -> None:
    """Write report.json, and then what people read; when that fails, report.json is there."""
    write_atomic(run / "report.json", json.dumps(json_ready(report), indent=1, ensure_ascii=False) + "\n")
    _write_pages(run)


def write_pages(run: Path) -> None:
    """Write report.md, report.html and plots/*.png again, from the run's report.json, metrics.jsonl and predictions.

    Raises:
        CheckpointError: The run has no report.json, or its files hold other things than those of a report.
        LorakitError: The disk refuses.
    """
    if not (run / "report.json").is_file():
        why = "not a run directory, or the run has not finished, or it was not trained here"
        raise CheckpointError(f"{run}: no report.json: {why}")
    try:
        _write_pages(run)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, FileNotFoundError) as error:
        raise CheckpointError(
            f"{run}: report.json, metrics.jsonl or a file of predictions is missing, damaged, or of another lorakit: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


def _write_pages(run: Path) -> None:
    found = page(run)
    for section in found.sections:
        for picture in section.pictures:
            write_atomic(run / PLOTS / f"{picture.name}.png", picture.png)
    write_atomic(run / "report.md", markdown(found))
    write_atomic(run / "report.html", html(found))
