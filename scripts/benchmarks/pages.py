"""Results as a table on the terminal, as Markdown and as JSON."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.ratios import Goal, Line

PACKAGES = (
    *("lorakit", "torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors"),
    *("torchtune", "torchao", "litgpt", "lightning", "unsloth", "unsloth-zoo"),
)


@dataclass(frozen=True)
class Curve:
    """What a contender did in a training workload.

    Args:
        workload: Its name.
        contender: Its name.
        tokens_per_second: Of each round; real tokens, padding not counted.
        losses: Of each step.
        peak_bytes: The most memory in training above the loaded model.
        difference: The largest between its losses and lorakit's at a step, as a share.
        bound: What `difference` may be.
    """

    workload: str
    contender: str
    tokens_per_second: list[float]
    losses: list[float]
    peak_bytes: int
    difference: float
    bound: float

    @property
    def failed(self) -> bool:
        """Whether this is not the training that lorakit does."""
        return not self.difference <= self.bound


@dataclass
class Results:
    """All that a run of the benchmarks gave.

    Args:
        machine: Hardware and versions.
        lines: The table of goals.
        curves: Of the training workloads.
        notes: What a reader must know beside.
        failures: What makes the numbers worthless: results that differ.
    """

    machine: dict[str, str]
    lines: list[Line] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Results") -> None:
        """Take up another one's, of the same machine."""
        self.lines += other.lines
        self.curves += other.curves
        self.notes += other.notes
        self.failures += other.failures


def machine() -> dict[str, str]:
    """The hardware and the versions of what can change a number; loads none of it but torch, for the GPU's name."""
    import torch

    found = {"cpu": _processor(), "cores": str(len(os.sched_getaffinity(0))), "threads": str(torch.get_num_threads())}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    found["python"] = platform.python_version()
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def hardware_line(found: dict[str, str]) -> str:
    """The machine in one line."""
    parts = [found["cpu"], f"{found['cores']} cores", f"{found['threads']} threads"]
    parts += [found["gpu"]] if "gpu" in found else []
    return ", ".join([*parts, *(f"{name} {found[name]}" for name in ("python", *PACKAGES) if name in found)])


def goal_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """The table of goals: header and cells."""
    rows = []
    for line in lines:
        value = line.value
        spread = f" ({_text(value.low, line.unit)} to {_text(value.high, line.unit)})" if value.low < value.high else ""
        met = {None: "", True: "yes", False: "no"}[line.met]
        rows.append(
            [line.what, line.against, _text(value.middle, line.unit) + spread, _goal(line.goal, line.unit), met]
        )
    return ["what", "against", "measured", "goal", "met"], rows


def curve_rows(curves: Sequence[Curve]) -> tuple[list[str], list[list[str]]]:
    """The table of the training workloads: header and cells."""
    rows = [
        [
            curve.workload,
            curve.contender,
            f"{statistics.median(curve.tokens_per_second):,.0f}",
            f"{curve.peak_bytes / 2**20:,.0f} MiB",
            f"{curve.losses[0]:.4f} to {curve.losses[-1]:.4f}",
            "" if curve.contender == "lorakit" else _difference(curve),
        ]
        for curve in curves
    ]
    return ["workload", "contender", "tok/s", "peak memory above the model", "loss", "curve from lorakit's"], rows


def _difference(curve: Curve) -> str:
    return f"{curve.difference:.1e}" + (f" FAILED: over {curve.bound:.0e}" if curve.failed else "")


def _text(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.1%}"
    return {"x": f"{value:.2f}×", "s": f"{value:.2f} s", "GB": f"{value / 1e9:.2f} GB", "MB": f"{value / 1e6:,.0f} MB"}[
        unit
    ]


def _goal(goal: Goal | None, unit: str) -> str:
    if goal is None:
        return ""
    return f"≥ {_text(goal.least, unit)}" if goal.least is not None else f"≤ {_text(goal.most or 0.0, unit)}"


def markdown(results: Results) -> str:
    """A page for docs: the machine, the goals, the workloads, what must be known beside."""
    parts = [hardware_line(results.machine) + ".", *(f"**FAILED: {text}**" for text in results.failures)]
    for header, rows in (goal_rows(results.lines), curve_rows(results.curves)):
        if rows:
            every = [header, ["---"] * len(header), *rows]
            parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in every))
    if results.notes:
        parts.append("\n".join(f"- {note}" for note in results.notes))
    return "\n\n".join(parts) + "\n"


def as_json(results: Results) -> str:
    """All numbers, for machines."""
    lines: list[dict[str, Any]] = [{**asdict(line), "met": line.met} for line in results.lines]
    curves: list[dict[str, Any]] = [{**asdict(curve), "failed": curve.failed} for curve in results.curves]
    fields = {"machine": results.machine, "lines": lines, "training": curves}
    return json.dumps({**fields, "notes": results.notes, "failures": results.failures}, indent=1) + "\n"
