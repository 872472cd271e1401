"""The training workloads: contenders take turns of a few steps; speed, memory, and whether the losses are the same."""

from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.pages import Curve, Results
from benchmarks.ratios import Goal, Line, curve_difference, measured, ratio
from benchmarks.workers import Worker, rotated
from benchmarks.workloads import Workload

WARM = 1
"""Rounds at the beginning that are not counted: allocators and kernels find their sizes in them."""
MEMORY = Goal(most=0.6)
OURS = "lorakit"


def run(workload: Workload, rounds: int, steps: int, results: Results, scratch: Path, tiny: bool) -> None:
    """Time a workload; adds its lines and curves to `results`.

    Args:
        workload: One of `WORKLOADS`.
        rounds: To be counted.
        steps: Of a contender in each round.
        results: Of all benchmarks.
        scratch: A folder for what is made up.
        tiny: Take the tiny shape.
    """
    recipe, overrides = workload.make((rounds + WARM) * steps, scratch, tiny)
    names = workload.contenders if find_spec("peft") else [OURS]
    if len(names) < len(workload.contenders):
        results.notes.append(f"{workload.name}: {', '.join(workload.contenders[1:])} left out: peft is not installed")
    with ExitStack() as stack:
        workers = {}
        for name in names:
            job = {"kind": "train", "contender": name, "recipe": str(recipe), "overrides": overrides}
            workers[name] = stack.enter_context(Worker(job))
            workers[name].answer()  # ready: one after the other, so that loading does not need the memory of all
        asked = {name: worker.ask for name, worker in workers.items()}
        answers = take_turns(asked, rounds + WARM, steps)
    compare(workload, answers, results)


def take_turns(
    ask: dict[str, Callable[..., dict[str, Any]]], rounds: int, steps: int
) -> dict[str, list[dict[str, Any]]]:
    """Rounds in which each contender does some steps, beginning with another one each time; returns their answers."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in ask}
    for turn in range(rounds):
        for name in rotated(list(ask), turn):
            answers[name].append(ask[name](steps=steps))
    return answers


def compare(workload: Workload, answers: dict[str, list[dict[str, Any]]], results: Results) -> None:
    """Put what the contenders answered into the tables.

    Args:
        workload: What they did.
        answers: Of each contender in each round, the warm ones too.
        results: Gets a curve for each, and a line for each but lorakit.
    """
    speeds = {name: [one["tokens"] / one["seconds"] for one in rows[WARM:]] for name, rows in answers.items()}
    losses = {name: [loss for one in rows for loss in one["losses"]] for name, rows in answers.items()}
    peaks = {name: max(one["peak_bytes"] for one in rows) for name, rows in answers.items()}
    tokens = {name: [one["tokens"] for one in rows] for name, rows in answers.items()}
    for name in answers:
        apart = curve_difference(losses[OURS], losses[name])
        curve = Curve(workload.name, name, speeds[name], losses[name], peaks[name], apart, workload.bound)
        results.curves.append(curve)
        if curve.failed or tokens[name] != tokens[OURS]:
            results.failures.append(
                f"{workload.name}: lorakit and {name} do not train the same: their losses differ by {apart:.1e}, and "
                f"{workload.bound:.0e} is what rounding explains"
            )
        if name != OURS:
            against = _title(name)
            speed = ratio(speeds[OURS], speeds[name])
            goal = workload.goal(name, "gpu" in results.machine)
            results.lines.append(Line(f"{workload.name}, tokens/s", against, speed, "x", goal))
            if workload.memory and peaks[name]:
                value = measured([peaks[OURS] / peaks[name]])
                results.lines.append(Line(f"{workload.name}, peak memory", against, value, "x", MEMORY))


def _title(contender: str) -> str:
    return {"peft": "PEFT + Trainer", "peft-padded": "PEFT + Trainer, padded to 512"}[contender]
