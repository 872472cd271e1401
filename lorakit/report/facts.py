"""What report.json says, in the words and on the scale of a person."""

import math
from typing import Any

from lorakit.runtime import size_text

RAW = {"loss", "nist", "nist_perl", "cider"}
"""Metrics that are printed as they are; the others are 0 to 1 and printed times 100, as the paper does."""


def on_paper_scale(metric: str, value: float) -> float:
    """0.875 as 87.5; NIST, CIDEr and the loss as they are."""
    return value if metric in RAW else 100 * value


def shown(metric: str, value: float | None) -> str:
    """A metric as people read it: BLEU 0.684 as 68.40; a correlation with a constant is undefined."""
    if value is None or math.isnan(value):
        return "undefined"
    return f"{value:.4f}" if metric in RAW else f"{100 * value:.2f}"


def shown_spread(metric: str, mean: float, std: float | None) -> str:
    """A mean as people read it, with its standard deviation where there is one."""
    return shown(metric, mean) if std is None else f"{shown(metric, mean)} ± {shown(metric, std)}"


def metric_rows(metrics: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row per metric, one column per split."""
    names = list(dict.fromkeys(name for found in metrics.values() for name in found))
    rows = [
        [name, *(shown(name, found[name]) if name in found else "–" for found in metrics.values())] for name in names
    ]
    return ["metric", *metrics], rows


def paper_line(report: dict[str, Any]) -> str | None:
    """The number that the recipe carries beside what was measured; None where it carries none."""
    paper = report["paper"]
    measured = report["metrics"]
    reported_on = (paper or {}).get("split")  # older reports have no such key
    split = reported_on if reported_on in measured else next(iter(measured), None)
    if not paper or split is None or paper["metric"] not in measured[split]:
        return None
    value = shown(paper["metric"], measured[split][paper["metric"]])
    spread = f" ± {paper['std']}" if paper["std"] is not None else ""
    elsewhere = f" on {reported_on}" if reported_on and reported_on != split else ""
    return (
        f"{paper['metric']}: {value} measured on {split}, {paper['value']}{spread} reported{elsewhere} "
        f"({paper['source']})"
    )


def note_lines(report: dict[str, Any]) -> list[str]:
    """What the task said beside its metrics: what was not computed and why, what was counted on the way."""
    return [f"{split}: {note}" for split, notes in report.get("notes", {}).items() for note in notes]


def _memory(report: dict[str, Any]) -> str:
    """Measurement beside prediction; what an older report, or a system that does not count, lacks is unknown."""
    found = (report.get("memory_in_use_bytes"), report.get("predicted_memory_bytes"))
    measured, predicted = ("unknown" if count is None else size_text(count) for count in found)
    return f"{measured} measured in use, {predicted} predicted"


def _skipped(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Said only where there were some."""
    count = report.get("skipped_steps")
    return [("skipped steps", f"{count:,}, whose loss or gradient was not finite")] if count else []


def _quantised(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Said only of a base in 4 bits."""
    found = report.get("quantised")
    if not found:
        return []
    layers = f"{found['modules']:,} layers with {found['parameters']:,} parameters"
    bits = f"{found['bits_per_parameter']:.3f} bits each; the whole base {found['base_bits_per_parameter']:.3f}"
    return [(f"base in {found['scheme']}", f"{layers}, {bits} ({size_text(found['base_bytes'])})")]


def summary_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What a person wants to know first."""
    parameters = report["parameters"]
    share = 100 * parameters["trainable"] / parameters["total"]
    speed = report["tokens_per_second"]
    targets = ", ".join(f"{name} ({count})" for name, count in report["targets"].items())
    cut = ", ".join(f"{split} {count}" for split, count in report["truncated"].items() if count) or "none"
    dropped = ", ".join(f"{split}: {why} {n}" for split, found in report["dropped"].items() for why, n in found.items())
    started = report.get("init_from")
    origin = [("started from", f"{started['run']} (adapter {started['adapter_sha256'][:12]})")] if started else []
    return [
        *origin,
        ("trained parameters", f"{parameters['trainable']:,} ({share:.2f} % of {parameters['total']:,})"),
        ("of these, the head", f"{parameters['head']:,}"),
        *_quantised(report),
        ("targets", targets),
        ("rows", ", ".join(f"{split} {count:,}" for split, count in report["rows"].items())),
        ("truncated rows", cut),
        ("dropped rows", dropped or "none"),
        (
            "steps",
            f"{report['steps']:,} ({report['epochs']:.2f} epochs); the adapter is that of step {report['best_step']}",
        ),
        *_skipped(report),
        ("chosen by", report["select"]),
        ("training time", f"{report['seconds']:,.1f} s" + (f", {speed:,.0f} tokens/s" if speed else "")),
        ("peak memory", size_text(report["peak_memory_bytes"])),
        ("memory above imports", _memory(report)),
        *(("memory ran out", line.replace(": memory ran out;", ":")) for line in report.get("memory_ran_out", ())),
        ("adapter", size_text(report["adapter_bytes"])),
        ("device", report["device"]),
    ]
