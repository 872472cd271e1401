"""The report of a run as a page, from the files of its directory alone."""

import json
from pathlib import Path
from typing import Any

from lorakit.journal import read_history
from lorakit.report.blocks import Block, Card, Code, Page, Pictures, Section, Table, Text
from lorakit.report.curves import chosen_metric, training_curves
from lorakit.report.facts import metric_rows, note_lines, paper_line, shown, summary_rows
from lorakit.report.results import results


def page(run: Path) -> Page:
    """Everything that the report says.

    Args:
        run: A finished run's directory: report.json, recipe.yaml, metrics.jsonl, predictions/.
    """
    report = json.loads((run / "report.json").read_text())
    recipe = report["recipe"]
    return Page(
        title=recipe["name"],
        subtitle=f"{_method(recipe)} on {recipe['model']['base']}, task {_task(recipe['task'])}",
        cards=_cards(report),
        sections=[
            Section("Metrics", _metrics(report)),
            Section("Training", [Pictures(training_curves(read_history(run), report))]),
            *_splits(run, report),
            Section("The run", [Table(["", ""], summary_rows(report), numbers=False)]),
            Section("The recipe, resolved", [Code((run / "recipe.yaml").read_text(), "yaml")], folded=True),
            Section("Versions", [Table(["", ""], list(report["versions"].items()), numbers=False)], folded=True),
        ],
    )


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _method(recipe: dict[str, Any]) -> str:
    methods = recipe["method"] if isinstance(recipe["method"], list) else [recipe["method"]]
    return " + ".join(
        f"{method['name']} (rank {method['rank']})" if "rank" in method else method["name"] for method in methods
    )


def _task(task: dict[str, Any]) -> str:
    return " ".join(str(task[key]) for key in ("name", "subset", "kind") if task.get(key))


def _cards(report: dict[str, Any]) -> list[Card]:
    """What a person looks for first."""
    name = chosen_metric(report) or "loss"
    cards = [Card(name, shown(name, found[name]), f"on {split}") for split, found in report["metrics"].items()]
    if paper := report["paper"]:
        spread = f" ± {paper['std']}" if paper["std"] is not None else ""
        cards.append(Card(f"{paper['metric']} reported", f"{paper['value']}{spread}", paper["source"]))
    counts, speed = report["parameters"], report["tokens_per_second"]
    share = 100 * counts["trainable"] / counts["total"]
    cards.append(Card("trained", f"{share:.2f} %", f"{counts['trainable']:,} of {counts['total']:,} parameters"))
    beside = f" at {speed:,.0f} tokens/s" if speed else ""
    cards.append(Card("training time", _duration(report["seconds"]), f"on {report['device']}{beside}"))
    return cards


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _metrics(report: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = [Table(*metric_rows(report["metrics"]))]
    blocks += map(Text, note_lines(report))
    if line := paper_line(report):
        blocks.append(Text(line))
    if report["select"] != "last":
        chosen = f"Step {report['best_step']:,} is published: the best by {report['select']} on the validation split"
        blocks.append(Text(f"{chosen}, which the metrics above also use."))
    return blocks


def _splits(run: Path, report: dict[str, Any]) -> list[Section]:
    found = []
    for split in report["metrics"]:
        records = _lines(run / "predictions" / f"{split}.jsonl")
        blocks = results(split, report["kind"], report["labels"], records)
        found.append(Section(f"Predictions on {split}", blocks))
    return found
