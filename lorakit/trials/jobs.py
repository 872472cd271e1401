"""One run of several that are looked at together: its recipe, its place and what came of it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from lorakit.errors import RecipeError
from lorakit.journal import read_history
from lorakit.launch import killed_by
from lorakit.recipe import Recipe, dump
from lorakit.runtime import disk_errors

_OURS = ("recipes", "runs", "logs")
_OF_TOTAL = re.compile(r"\b(\d+)(?:/| of )(\d+)\b")


def slug(name: str) -> str:
    """A name as files have it."""
    return "loraplus" if name == "lora+" else name.replace("+", "-")


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        name: What the run is called, such as its method.
        seed: Of the run.
        recipe: Resolved.
        folder: Of all the trials.
    """

    name: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def label(self) -> str:
        """In the names of its files."""
        return f"{slug(self.name)}-seed{self.seed}"

    @property
    def file(self) -> Path:
        """Its recipe."""
        return self.folder / "recipes" / f"{self.label}.yaml"

    @property
    def run(self) -> Path:
        """Its run directory."""
        return self.folder / "runs" / self.label

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "logs" / f"{self.label}.log"

    def report(self) -> dict[str, Any] | None:
        """report.json of a finished run."""
        try:
            found: dict[str, Any] = json.loads((self.run / "report.json").read_text())
        except (OSError, ValueError):
            return None
        return found if found.get("status") == "complete" else None

    def done(self) -> bool:
        """Whether this very recipe has been run to its end."""
        return self.same() and self.report() is not None

    def same(self) -> bool:
        """Whether the recipe that is there, if any, is this one."""
        return not self.file.is_file() or self.file.read_text() == dump(self.recipe)

    def progress(self) -> str:
        """`120/300` steps; the total is unknown until the run has said it."""
        step = max((line["step"] for line in read_history(self.run) if line["kind"] == "log"), default=0)
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        said = [line for line in text.splitlines() if line.startswith(("train ", "step ", "stopped ", "resuming "))]
        totals = [match[2] for line in said if (match := _OF_TOTAL.search(line))]
        return f"{step}/{totals[-1]}" if totals else str(step)

    def reason(self, code: int) -> str:
        """Why it failed: the last error that it printed, else what ended it."""
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if code < 0:
            return killed_by(-code)
        return (errors or lines or [f"exit code {code}"])[-1]


def make_place(folder: Path, jobs: Sequence[Job], overwrite: bool, kind: str) -> None:
    """Check that a folder can take these runs.

    Args:
        folder: Theirs; need not exist.
        jobs: What will run.
        overwrite: Remove the runs that are there.
        kind: What is made, in words: a comparison.

    Raises:
        RecipeError: It holds something else, or runs of other recipes under these names.
    """
    ours = (folder / "recipes").is_dir()
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} exists and is no {kind}; choose another --out")
    if overwrite:
        with disk_errors(folder):
            for name in _OURS:
                rmtree(folder / name, ignore_errors=True)
    changed = [job.label for job in jobs if not job.same() and job.run.exists()]
    if changed:
        raise RecipeError(
            f"{folder}: {', '.join(changed[:4])} ({len(changed)} in all) have been trained by other recipes; "
            "do them again with --overwrite, or choose another --out"
        )
