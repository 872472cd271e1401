"""What came of a reproduction: the table as it is printed where the numbers are from, the verdicts, and the files."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.report import table as markdown_table
from lorakit.report.markdown import escape
from lorakit.reproduce.entries import Entry, task_title
from lorakit.reproduce.judge import Judged, printed
from lorakit.runtime import json_ready, write_atomic
from lorakit.trials.jobs import Job
from lorakit.trials.summary import lower_is_better

GLUE = {"mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"}
"""The columns of which the paper's Table 2 takes the average."""
_PLAIN = {"loss": 4}
"""Decimals; the others have two."""


@dataclass(frozen=True)
class Outcome:
    """What came of one row of one recipe.

    Args:
        entry: The row.
        jobs: Its runs; none where it could not be run.
        failures: Seed → reason.
        metrics: Seed → metrics on the split that was reported, as reports have them.
        judged: The verdict.
    """

    entry: Entry
    jobs: list[Job]
    failures: dict[int, str]
    metrics: dict[int, dict[str, float]]
    judged: Judged

    @property
    def parameters(self) -> int | None:
        """Trained, without the task's head; None where no run is finished."""
        reports = (job.report() for job in self.jobs)
        return next((int(report["parameters"]["method"]) for report in reports if report), None)

    def best(self) -> Job | None:
        """The run that others start from: the best on the split that chooses the step; None where a seed failed."""
        if self.failures or not self.jobs:
            return None
        metric = self.entry.contract.metric

        def rank(job: Job) -> float:
            report = job.report()
            value = next(iter(report["metrics"].values())).get(metric) if report else None
            if value is None:
                return float("-inf")
            return -value if lower_is_better(metric) else float(value)

        return max(self.jobs, key=rank)

    def line(self) -> str:
        """The verdict, in words."""
        contract, judged, reported = self.entry.contract, self.judged, self.entry.reported
        if contract.metric not in judged.metrics:
            return f"{self.entry.title}: {judged.verdict}: {judged.why}"
        value = _cell(contract.metric, judged.metrics[contract.metric])
        beside = f" ({contract.source})"
        how = f"{contract.statistic} over {len(self.metrics)} seeds" if len(self.metrics) > 1 else "one seed"
        text = f"{self.entry.title}: {judged.verdict}: {contract.metric} {value}, {how}, is {judged.why}{beside}"
        if judged.verdict == "not judged":
            number = f" ({contract.source}: {printed(contract.metric, reported.value)})" if reported else ""
            text = f"{self.entry.title}: not judged: {contract.metric} {value}, {how}{number}; {judged.why}"
        if 0 < len(self.metrics) < contract.seeds:
            text += f"; reported over {contract.seeds} seeds, so this is a look and no reproduction yet"
        return text

    def record(self) -> dict[str, Any]:
        """For reproduce.json."""
        entry, judged = self.entry, self.judged
        return {
            "recipe": entry.recipe.name,
            "method": entry.method,
            "verdict": judged.verdict,
            "why": judged.why,
            "split": self._split(),
            "metric": entry.contract.metric,
            "statistic": entry.contract.statistic,
            "seeds": len(entry.seeds),
            "parameters": self.parameters,
            "measured": {name: {"value": value, "std": std} for name, (value, std) in judged.metrics.items()},
            "reported": entry.reported.model_dump(mode="json") if entry.reported else None,
            "runs": [self._run(job) for job in self.jobs],
        }

    def _split(self) -> str | None:
        reports = (job.report() for job in self.jobs)
        first = next((next(iter(report["metrics"])) for report in reports if report), None)
        return self.entry.contract.split or first

    def _run(self, job: Job) -> dict[str, Any]:
        return {
            "seed": job.seed,
            "reason": self.failures.get(job.seed),
            "metrics": self.metrics.get(job.seed),
            "recipe": str(job.file),
            "run": str(job.run),
            "log": str(job.log),
        }


@dataclass(frozen=True)
class Reproduction:
    """What came of all.

    Args:
        outcomes: Row by row, in the order asked for.
        folder: Where the table is.
    """

    outcomes: list[Outcome]
    folder: Path

    @property
    def succeeded(self) -> bool:
        """Whether no row is below and none has failed."""
        return not any(outcome.judged.verdict in ("below", "failed") for outcome in self.outcomes)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(header, rows): for each row of the source its runs' line and, below, the reported one."""
        columns = _columns(self.outcomes)
        rows: dict[tuple[str, ...], dict[str, Outcome]] = {}
        for outcome in self.outcomes:
            key = _row_of(outcome)
            if task_title(outcome.entry.recipe) in rows.get(key, {}):
                key = (*key, outcome.entry.recipe.name)
            rows.setdefault(key, {})[task_title(outcome.entry.recipe)] = outcome
        average = any(set(found) >= GLUE for found in rows.values())
        titles = {title for title, _ in columns}
        heads = [metric if len(titles) == 1 else f"{title} {metric}" for title, metric in columns]
        bases = {outcome.entry.recipe.model.base for outcome in self.outcomes}
        header = [bases.pop() if len(bases) == 1 else "", "trained", *heads, *(["average"] if average else [])]
        lines = [line for key, found in rows.items() for line in _lines(key, found, columns, average)]
        if header[0]:
            lines = [[line[0].removeprefix(f"{Path(header[0]).name} "), *line[1:]] for line in lines]
        return header, lines

    def lines(self) -> list[str]:
        """The verdicts, then what a reader must know and what is known about reproducing the numbers, each once."""
        notes: dict[str, list[str]] = {}
        for outcome in self.outcomes:
            reported = outcome.entry.reported
            for text in (outcome.entry.contract.note, reported.known) if reported else ():
                if text and outcome.entry.title not in notes.setdefault(text, []):
                    notes[text].append(outcome.entry.title)
        said = [outcome.line() for outcome in self.outcomes]
        for text, titles in notes.items():
            more = f" and {len(titles) - 1} more" if len(titles) > 1 else ""
            said.append(f"note on {titles[0]}{more}: {text}")
        return said


def write(found: Reproduction) -> None:
    """Write reproduce.json and reproduce.md.

    Raises:
        LorakitError: The disk refuses.
    """
    facts = {"succeeded": found.succeeded, "rows": [outcome.record() for outcome in found.outcomes]}
    write_atomic(found.folder / "reproduce.json", json.dumps(json_ready(facts), indent=1, ensure_ascii=False) + "\n")
    names = dict.fromkeys(outcome.entry.recipe.name for outcome in found.outcomes)
    text = [f"# {escape(', '.join(names))}: beside the reported numbers\n", markdown_table(*found.table(), "---:")]
    text += [f"- {escape(line)}" for line in found.lines()]
    write_atomic(found.folder / "reproduce.md", "\n".join(text) + "\n")


def _row_of(outcome: Outcome) -> tuple[str, ...]:
    """What rows of the table are told apart by: base, table, and what the method is called there."""
    entry = outcome.entry
    return Path(entry.recipe.model.base).name, entry.contract.source, entry.label, _params(outcome)


def _params(outcome: Outcome) -> str:
    reported = outcome.entry.reported
    return (reported.params if reported else None) or ""


def _columns(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """(task, metric): what is judged, and the other metrics that were reported."""
    columns: dict[tuple[str, str], None] = {}
    for outcome in outcomes:
        contract, reported = outcome.entry.contract, outcome.entry.reported
        names = [contract.metric, *(reported.others if reported else {})]
        columns |= dict.fromkeys((task_title(outcome.entry.recipe), name) for name in names)
    return sorted(columns, key=lambda column: [title for title, _ in columns].index(column[0]))


def _lines(
    key: tuple[str, ...], found: dict[str, Outcome], columns: Sequence[tuple[str, str]], average: bool
) -> list[list[str]]:
    base, source, label, params = key[:4]
    counts = dict.fromkeys(f"{outcome.parameters:,}" for outcome in found.values() if outcome.parameters is not None)
    measured, reported = [], []
    for title, metric in columns:
        outcome = found.get(title)
        measured.append(_measured(outcome, metric) if outcome else "–")
        reported.append(_reported(outcome, metric) if outcome else "–")
    if average:
        measured.append(_average([_value(found.get(title)) for title in sorted(GLUE)]))
        numbers = [one.entry.reported.value if (one := found.get(t)) and one.entry.reported else None for t in GLUE]
        reported.append(_average(numbers))
    own = " ".join([base, label, *(f"({name})" for name in key[4:])])
    return [[own, " / ".join(counts) or "–", *measured], [f"  reported, {source}", params or "–", *reported]]


def _average(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.2f}" if len(known) == len(GLUE) else "–"


def _value(outcome: Outcome | None) -> float | None:
    if outcome is None:
        return None
    return outcome.judged.metrics.get(outcome.entry.contract.metric, (None, None))[0]


def _measured(outcome: Outcome, metric: str) -> str:
    if outcome.entry.unavailable:
        return "–"
    if outcome.judged.verdict == "failed" and not outcome.judged.metrics:
        return "failed"
    found = outcome.judged.metrics.get(metric)
    return _cell(metric, found) if found else "–"


def _cell(metric: str, found: tuple[float, float | None]) -> str:
    value, std = found
    if value != value:  # noqa: PLR0124 (nan)
        return "undefined"
    digits = _PLAIN.get(metric, 2)
    return f"{value:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def _reported(outcome: Outcome, metric: str) -> str:
    reported = outcome.entry.reported
    if reported is None:
        return "–"
    if metric == reported.metric:
        spread = f" ± {printed(metric, reported.std)}" if reported.std is not None else ""
        return printed(metric, reported.value) + spread
    return printed(metric, reported.others[metric]) if metric in reported.others else "–"
