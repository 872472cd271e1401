"""The training workloads: contenders take turns of a few steps; speed, memory, and whether the losses are the same."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.pages import Curve, Results
from benchmarks.ratios import Goal, Line, curve_difference, measured, ratio
from benchmarks.workers import Worker, rotated
from benchmarks.workloads import Workload

WARM = 1
"""Rounds at the beginning that are not counted: allocators and kernels find their sizes in them."""
MEMORY = Goal(most=0.6)


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
    names, left_out = workload.field("gpu" in results.machine)
    with ExitStack() as stack:
        workers = {}
        for name in names:
            job = {"kind": "train", "contender": name, "recipe": str(recipe), "overrides": overrides}
            worker = stack.enter_context(Worker(job))
            answer = worker.answer()  # one after the other, so that loading does not need the memory of all
            if "refused" in answer:
                left_out[name] = answer["refused"]
            else:
                workers[name] = worker
        asked = {name: worker.ask for name, worker in workers.items()}
        answers = take_turns(asked, rounds + WARM, steps)
    results.notes += notes(workload.name, list(workers), left_out)
    compare(workload, answers, results)


def notes(workload: str, ran: Sequence[str], left_out: Mapping[str, str]) -> list[str]:
    """What a reader must know of the contenders.

    Args:
        workload: Its name.
        ran: Who took part.
        left_out: Who did not → why; one line for those with the same reason.
    """
    found = [f"{workload}: {name}: {CONTENDERS[name].note}" for name in ran if CONTENDERS[name].note]
    for reason in dict.fromkeys(left_out.values()):
        names = ", ".join(name for name, why in left_out.items() if why == reason)
        found.append(f"{workload}: {names} left out: {reason}")
    return found


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
            against = CONTENDERS[name].title
            speed = ratio(speeds[OURS], speeds[name])
            goal = workload.goal(name, "gpu" in results.machine)
            results.lines.append(Line(f"{workload.name}, tokens/s", against, speed, "x", goal))
            if workload.memory and peaks[name]:
                value = measured([peaks[OURS] / peaks[name]])
                bound = MEMORY if name in workload.goals else None
                results.lines.append(Line(f"{workload.name}, peak memory", against, value, "x", bound))
