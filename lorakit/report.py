"""What a finished run tells: report.json for programs, report.md for people."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit.runtime import json_ready, write_atomic

_RAW = {"loss", "nist", "cider"}
"""Metrics that are printed as they are; the others are 0 to 1 and printed times 100, as the paper does."""


def shown(metric: str, value: float | None) -> str:
    """A metric as people read it: BLEU 0.684 as 68.40; a correlation with a constant is undefined."""
    if value is None or math.isnan(value):
        return "undefined"
    return f"{value:.4f}" if metric in _RAW else f"{100 * value:.2f}"


def write_report(run: Path, report: dict[str, Any]) -> None:
    """Write report.json and report.md."""
    write_atomic(run / "report.json", json.dumps(json_ready(report), indent=1, ensure_ascii=False) + "\n")
    write_atomic(run / "report.md", markdown(report))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def metric_rows(metrics: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row per metric, one column per split."""
    names = list(dict.fromkeys(name for found in metrics.values() for name in found))
    rows = [
        [name, *(shown(name, found[name]) if name in found else "–" for found in metrics.values())] for name in names
    ]
    return ["metric", *metrics], rows


def paper_line(report: dict[str, Any]) -> str | None:
    """The paper's number beside what was measured; None where the recipe carries none."""
    paper = report["paper"]
    found: dict[str, float] = next(iter(report["metrics"].values()), {})
    if not paper or paper["metric"] not in found:
        return None
    measured = shown(paper["metric"], found[paper["metric"]])
    spread = f" ± {paper['std']}" if paper["std"] is not None else ""
    split = next(iter(report["metrics"]))
    return (
        f"{paper['metric']}: {measured} measured on {split}, {paper['value']}{spread} in the paper ({paper['source']})"
    )


def summary_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What a person wants to know first."""
    parameters = report["parameters"]
    share = 100 * parameters["trainable"] / parameters["total"]
    speed = report["tokens_per_second"]
    targets = ", ".join(f"{name} ({count})" for name, count in report["targets"].items())
    cut = ", ".join(f"{split} {count}" for split, count in report["truncated"].items() if count) or "none"
    dropped = ", ".join(f"{split}: {why} {n}" for split, found in report["dropped"].items() for why, n in found.items())
    return [
        ("trained parameters", f"{parameters['trainable']:,} ({share:.2f} % of {parameters['total']:,})"),
        ("of these, the head", f"{parameters['head']:,}"),
        ("targets", targets),
        ("rows", ", ".join(f"{split} {count:,}" for split, count in report["rows"].items())),
        ("truncated rows", cut),
        ("dropped rows", dropped or "none"),
        (
            "steps",
            f"{report['steps']:,} ({report['epochs']:.2f} epochs); the adapter is that of step {report['best_step']}",
        ),
        ("chosen by", report["select"]),
        ("training time", f"{report['seconds']:,.1f} s" + (f", {speed:,.0f} tokens/s" if speed else "")),
        ("peak memory", f"{report['peak_memory_bytes'] / 2**20:,.0f} MiB"),
        ("adapter", f"{report['adapter_bytes'] / 2**20:,.2f} MiB"),
        ("device", report["device"]),
    ]


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    recipe = report["recipe"]
    parts = [
        f"# {recipe['name']}\n",
        f"Base `{recipe['model']['base']}`, status {report['status']}.\n",
        "## Metrics\n",
        table(*metric_rows(report["metrics"])),
    ]
    if line := paper_line(report):
        parts.append(line + "\n")
    if recipe["train"]["select"] != "last":
        parts.append("The published step was chosen on the validation split, which the metrics above also use.\n")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    parts += ["## The run\n", table(["", ""], summary_rows(report)), f"Seed {report['seed']}; {versions}.\n"]
    return "\n".join(parts)
