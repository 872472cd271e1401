"""A plan as tables for people and as one object for programs."""

import re
from collections.abc import Sequence
from typing import Any

from lorakit.errors import RecipeError
from lorakit.forecast import Phase
from lorakit.lengths import histogram
from lorakit.measure import Probe
from lorakit.modules import ModuleRow
from lorakit.plan import Plan
from lorakit.runtime import size_text

Table = tuple[list[str], list[list[str]]]
"""Header and rows."""
_BAR = 30
_WIDTH = 100
_SHORTEST_PATH = 24


def parse_size(text: str) -> int:
    """Bytes from `24GiB`, `800MiB`, `24GB` or a number of bytes.

    Raises:
        RecipeError: It is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", text.strip())
    if match is None or float(match[1]) == 0:
        raise RecipeError(f"--memory {text}: give a size such as 24GiB or 800MiB")
    unit = match[2] or "B"
    power = " KMGT".index(unit[0]) if unit != "B" else 0
    return int(float(match[1]) * (1024 if "i" in unit else 1000) ** power)


def tables(plan: Plan) -> list[Table]:
    """The plan, table by table, each at most 100 columns wide."""
    found = [_overview(plan), _modules(plan.modules), _data(plan)]
    if plan.lengths is not None:
        found.append(_lengths(plan))
    return [*found, _memory(plan)]


def _overview(plan: Plan) -> Table:
    recipe, parameters, train = plan.recipe, plan.parameters, plan.recipe.train
    share = 100 * parameters["trainable"] / parameters["total"]
    where = "" if plan.base == "here" else " (not on this machine)"
    rows = [
        ["base", f"{recipe.model.base}{where}"],
        ["weights", f"{_dtype(plan)}, computed in {plan.precision}, on {plan.machine.device}"],
        ["parameters", f"{parameters['total']:,}"],
        ["trained", f"{parameters['trainable']:,} ({share:.2f} %)"],
        ["  by the method", f"{parameters['method']:,} ({', '.join(method.name for method in recipe.method)})"],
        ["  the head", f"{parameters['head']:,}"],
        ["steps", _steps(plan)],
        ["a step", f"{train.batch_size} rows, in micro-batches of at most {_limit(plan)}"],
        ["adapter on disk", size_text(plan.adapter)],
        ["a checkpoint", f"{size_text(plan.checkpoint)} with the optimiser's state; the newest and the best are kept"],
    ]
    return ["plan", recipe.name], rows


def _dtype(plan: Plan) -> str:
    """Of the frozen weights; what is not in 4 bits stays as it was loaded."""
    return f"{plan.recipe.model.quantize} and {plan.dtype}" if plan.recipe.model.quantize else plan.dtype


def _steps(plan: Plan) -> str:
    if plan.steps is None:
        return f"unknown: {plan.recipe.train.epochs} epochs of rows that are not here"
    epochs = "" if plan.epochs is None else f" ({plan.epochs:.2f} epochs)"
    tokens = plan.splits[0].tokens
    read = "" if tokens is None or plan.epochs is None else f", about {tokens * plan.epochs:,.0f} tokens"
    return f"{plan.steps:,}{epochs}{read}"


def _limit(plan: Plan) -> str:
    if plan.limit.rows is not None:
        return f"{plan.limit.rows} rows"
    return f"{plan.limit.tokens:,} tokens, padding included"


def _modules(rows: Sequence[ModuleRow]) -> Table:
    header = ["modules", "class", "adapted", "frozen", "trained"]
    lines = []
    for row in rows:
        adapted = f"{row.adapted} by {', '.join(row.by)}" if row.adapted else ", ".join(row.by) or "–"
        lines.append([row.path, f"{row.count} x {row.kind}", adapted, f"{row.frozen:,}", f"{row.trained:,}"])
    others = sum(2 + max(len(line[column]) for line in (header, *lines)) for column in range(1, len(header)))
    room = max(_WIDTH - others, _SHORTEST_PATH)
    return header, [[_shortened(path, room), *rest] for path, *rest in lines]


def _shortened(path: str, room: int) -> str:
    return path if len(path) <= room else f"…{path[1 - room :]}"


def _data(plan: Plan) -> Table:
    lines = []
    for split in plan.splits:
        rows = "unknown" if split.rows is None else f"{split.rows:,}{' (official count)' if split.official else ''}"
        counts = [split.dropped, split.truncated, split.tokens]
        lines.append([split.name, rows, *("–" if count is None else f"{count:,}" for count in counts)])
    return ["split", "rows", "dropped", "truncated", "tokens"], lines


def _lengths(plan: Plan) -> Table:
    assert plan.lengths is not None
    assert plan.padding is not None
    bins = histogram(plan.lengths)
    most = max(rows for _, _, rows in bins)
    lines = [[f"{a}–{b}", f"{rows:,}", "█" * -(-_BAR * rows // most)] for a, b, rows in bins]
    shares = plan.padding
    own = f"{100 * shares.sorted:.1f} %", "as lorakit pads: the rows of a step sorted by length"
    if shares.packed:
        own = "0 %", "as lorakit computes: the rows of a micro-batch are packed into one"
    lines += [
        ["padding", *own],
        ["", f"{100 * shares.unsorted:.1f} %", "unsorted, each micro-batch to its longest row"],
        ["", f"{100 * shares.to_max_length:.1f} %", f"every row to the {plan.max_length} of max_length"],
    ]
    return ["tokens", "training rows", ""], lines


def _memory(plan: Plan) -> Table:
    order = [
        "weights",
        "trained",
        "optimiser",
        "gradients",
        "activations",
        "logits",
        "backward",
        "copies",
        "kernels",
        "libraries",
    ]
    parts = [part for part in order if any(part in phase.parts for phase in plan.phases)]
    words = {
        "trained": "adapter and head",
        "optimiser": "optimiser's state",
        "backward": "backward pass",
        "kernels": "compiled kernels",
        "libraries": "libraries, tokenizer",
    }
    words |= {"weights": f"weights ({_dtype(plan)})", "logits": "logits and loss"}
    lines = [[words.get(p, p), *(size_text(x.parts[p]) if p in x.parts else "–" for x in plan.phases)] for p in parts]
    lines.append(["in all", *(size_text(phase.total) for phase in plan.phases)])
    lines.append(
        ["batch (rows x tokens)", *("–" if phase.shape is None else str(phase.shape) for phase in plan.phases)]
    )
    return ["memory", *(phase.name for phase in plan.phases)], lines


def sentences(plan: Plan) -> list[str]:
    """What stands below the tables."""
    said = [f"note: {note}" for note in plan.notes]
    capacity, most = plan.machine.capacity, plan.phases[0]
    needs = f"{'at most ' if plan.bound else ''}{size_text(most.total)} for {most.name}"
    if capacity is None:
        return [*said, f"needs {needs}; how much there is, is unknown: --memory 24GiB says it"]
    if plan.fits:
        return [
            *said,
            f"fits: {needs}, of {size_text(capacity)} ({plan.machine.source})",
            f"the largest micro-batch that fits: {plan.largest:,} x {plan.longest} tokens, the longest row",
        ]
    return said if refused(plan) else [*said, *_lacking(plan)]


def refused(plan: Plan) -> bool:
    """Whether the run cannot fit: with lengths unknown, only where the constant parts alone do not."""
    if plan.fits or plan.machine.capacity is None:
        return False
    constant = ("weights", "trained", "optimiser", "gradients")
    least = sum(plan.phases[0].parts.get(part, 0) for part in constant) if plan.bound else plan.phases[0].total
    return least > plan.machine.capacity


def refusals(plan: Plan) -> list[str]:
    """Why the run cannot fit, and what would; empty where it does."""
    return _lacking(plan) if refused(plan) else []


def _lacking(plan: Plan) -> list[str]:
    capacity, most = plan.machine.capacity, plan.phases[0]
    assert capacity is not None
    needs = "may need" if plan.bound else "needs"
    lines = [f"{most.name} {needs} {size_text(most.total)} and there are {size_text(capacity)} ({plan.machine.source})"]
    enough = [change for change in plan.changes if change.bytes <= capacity]
    lines += [f"fits with {change.text}: {size_text(change.bytes)}" for change in enough]
    if not enough:
        least = min(plan.changes, key=lambda change: change.bytes)
        lines.append(f"no change of the recipe makes it fit; the least is {size_text(least.bytes)}, with {least.text}")
    return lines


def duration(seconds: float) -> str:
    """A time as people read it."""
    if seconds < 120:
        return f"{seconds:,.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds / 3600:,.1f} h"


def measured_rows(probe: Probe) -> Table:
    """What a few real steps told, and what the whole run will take."""
    memory = "unknown on this system" if probe.measured_bytes is None else size_text(probe.measured_bytes)
    whole = probe.training_seconds + probe.evaluation_seconds
    rows = [
        ["a step", f"{probe.seconds_per_step:.3f} s (mean of {probe.steps})"],
        ["speed", f"{probe.tokens_per_second:,.0f} tokens/s, padding not counted"],
        ["the whole run", f"about {duration(whole)}; loading the base and reading the rows not counted"],
        ["  training", duration(probe.training_seconds)],
        ["  evaluation", f"{duration(probe.evaluation_seconds)}: {probe.evaluations} while training, and the last"],
        ["memory", f"{memory} measured in use, {size_text(probe.predicted_bytes)} predicted"],
    ]
    return ["measured", ""], rows


def as_json(plan: Plan, probe: Probe | None = None) -> dict[str, Any]:
    """The plan, and what was measured, as one object; sizes in bytes."""
    return {
        "name": plan.recipe.name,
        "base": plan.recipe.model.base,
        "base_is_here": plan.base == "here",
        "device": plan.machine.device,
        "dtype": plan.dtype,
        "quantize": plan.recipe.model.quantize,
        "precision": plan.precision,
        "parameters": plan.parameters,
        "modules": [vars(row) for row in plan.modules],
        "splits": {split.name: {k: v for k, v in vars(split).items() if k != "name"} for split in plan.splits},
        "lengths": None if plan.lengths is None else [list(found) for found in histogram(plan.lengths)],
        "max_length": plan.max_length,
        "padding": None if plan.padding is None else vars(plan.padding),
        "steps": plan.steps,
        "epochs": plan.epochs,
        "micro_batch": vars(plan.limit),
        "memory": {phase.name: _phase(phase) for phase in plan.phases},
        "needed_bytes": plan.phases[0].total,
        "capacity_bytes": plan.machine.capacity,
        "fits": plan.fits,
        "largest_micro_batch": plan.largest,
        "changes": [vars(change) for change in plan.changes],
        "adapter_bytes": plan.adapter,
        "checkpoint_bytes": plan.checkpoint,
        "notes": plan.notes,
        "measured": None if probe is None else vars(probe),
    }


def _phase(phase: Phase) -> dict[str, Any]:
    return {"bytes": phase.total, "parts": phase.parts, "batch": None if phase.shape is None else vars(phase.shape)}
