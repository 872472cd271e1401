"""Several adapters of one base as one: ΔW is the sum of theirs, exactly, and the rank the sum of the ranks.

B₁A₁ + B₂A₂ = [B₁ B₂][A₁; A₂]: the factors are set side by side, and nothing is rounded away. Weights other than 1, and
scalings alpha / r that differ, are multiplied into B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorakit.checkpoint import Opened, head_of, open_run
from lorakit.compose import WHOLE, Pair, Parts, joined, run_name, tidy, unfused, write_run
from lorakit.errors import CheckpointError, MergeError, RecipeError
from lorakit.export.base import relative_difference, whole_tensors
from lorakit.layers.adapted import Adapted
from lorakit.layers.dora import DoRALayer
from lorakit.layers.low_rank import LoRALayer, LowRank, low_rank_edit
from lorakit.merge import check_place
from lorakit.merge_plan import adapted_layers
from lorakit.methods.lora import LoRA
from lorakit.model import Prepared, prepare
from lorakit.weights import fingerprint, model_entries


@dataclass(frozen=True)
class CombineReport:
    """What was combined.

    Args:
        runs: Their directories and weights.
        method: Of the run that was made.
        modules: Adapted in it.
        max_difference: max |its ΔW - the sum of the runs' ΔW| over the largest |sum|, for the worst module.
    """

    runs: tuple[tuple[Path, float], ...]
    method: LoRA
    modules: int
    max_difference: float

    def rows(self) -> list[tuple[str, str]]:
        """Label and value, for a table."""
        rows = [(str(run), f"times {weight:g}") for run, weight in self.runs]
        other = " (and others by pattern)" if self.method.ranks or self.method.alphas else ""
        rows += [("rank, alpha", f"{self.method.rank}, {self.method.alpha:g}{other}")]
        rows += [("adapted modules", f"{self.modules:,}")]
        return [*rows, ("largest relative difference to the sum", f"{self.max_difference:.1e}")]


def combine(runs: Sequence[Path], out: Path, weights: Sequence[float] | None = None) -> CombineReport:
    """Write a run whose update is the weighted sum of those of several runs of one base.

    Args:
        runs: Two or more; the first one's recipe gives the task.
        out: The directory to make; it may exist if it is empty.
        weights: One for each run; None: 1 for all, their plain sum.

    Raises:
        RecipeError: There are too few runs, or the weights do not fit them.
        CheckpointError: The runs have other bases.
        MergeError: Something was trained that cannot be added: another method than LoRA, DoRA, biases, two heads. Names
            all of it; nothing is written then.
        LorakitError: The disk refuses.
    """
    factors = _weights(runs, weights)
    opened = [open_run(run, skeleton=True) for run in runs]
    if problems := [problem for other in opened[1:] if (problem := other_base(opened[0], other))]:
        raise CheckpointError(*problems)
    if problems := [*_not_added(opened), *_other_heads(opened)]:
        raise MergeError(*problems)
    first = opened[0]
    check_place(out, sum(v.numel() * v.element_size() for one in opened for v in one.state.values()))
    recipe = first.recipe.model_copy(update={"name": run_name(out), "paper": None, "methods": {}})
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"init_from": None})})
    bare = prepare(recipe.model, [], head_of(recipe), recipe.train.seed, skeleton=True)
    parts = _sum(bare, opened, factors)
    named = " + ".join(f"{weight:g} x {run.resolve().name}" for run, weight in zip(runs, factors, strict=True))
    made = write_run(out, recipe, bare, parts, str(first.directory), f"Made by `lorakit combine`: {named}")
    method = made.prepared.methods[0]
    assert isinstance(method, LoRA)
    worst = _difference(made, opened, factors)
    return CombineReport(tuple(zip(runs, factors, strict=True)), method, len(parts.pairs), worst)


def other_base(one: Opened, other: Opened) -> str | None:
    """Why two runs are not of one base; None where they are: all tensors of the files are compared by their beginnings.

    Args:
        one: A run.
        other: Another.
    """
    if problem := other_weights(one, other):
        return problem
    heads = [head_of(run.recipe) for run in (one, other)]
    if (heads[0].kind == "generation") != (heads[1].kind == "generation"):
        return f"{other.directory}: is for {heads[1].kind}, and {one.directory} for {heads[0].kind}"
    in_4_bits = [run.prepared.quantised is not None for run in (one, other)]
    if in_4_bits[0] != in_4_bits[1]:
        kinds = ["in 4 bits" if quantised else "whole" for quantised in in_4_bits]
        return (
            f"{other.directory}: was trained on the base {kinds[1]}, and {one.directory} on the base {kinds[0]} "
            "(model.quantize): these have other weights"
        )
    if one.recipe.model.overrides != other.recipe.model.overrides:
        return f"{other.directory}: has other model.overrides than {one.directory}"
    return None


def other_weights(one: Opened, other: Opened) -> str | None:
    """Why two runs' bases have other weights; None where they have the same.

    Args:
        one: A run.
        other: Another.
    """
    homes = [run.prepared.located for run in (one, other)]
    if homes[0].directory != homes[1].directory:
        entries = [model_entries(home.directory) for home in homes]
        if entries[0].keys() != entries[1].keys() or len({fingerprint(found, found) for found in entries}) > 1:
            return f"{other.directory}: is of the base {homes[1].name}, and {one.directory} of {homes[0].name}"
    return None


def _weights(runs: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    if len(runs) < 2:
        raise RecipeError("name two runs or more")
    if weights is None:
        return [1.0] * len(runs)
    if len(weights) != len(runs) or not all(torch.isfinite(torch.tensor(list(weights)))):
        raise RecipeError(f"--weights: give {len(runs)} numbers, one for each run, such as {','.join('1' * len(runs))}")
    if not all(weights):
        raise RecipeError("--weights: a run with the weight 0 adds nothing; leave it out")
    return list(weights)


def _not_added(opened: Sequence[Opened]) -> list[str]:
    """What was trained in some of the runs that has no sum."""
    found = []
    for run in opened:
        layers = adapted_layers(run.prepared.model)
        for method in run.prepared.methods:
            if not isinstance(method, LoRA):
                found.append(f"{run.directory}: was trained by {method.name}; only LoRA's updates can be added")
        if any(isinstance(layer, DoRALayer) for layer in layers.values()):
            found.append(f"{run.directory}: is a DoRA, whose magnitudes do not add up; merge it, and train on that")
        rest = [name for name in whole_tensors(run) if not run.prepared.in_head(name)]
        if rest and all(isinstance(method, LoRA) for method in run.prepared.methods):
            found.append(
                f"{run.directory}: trained {rest[0]} ({len(rest)} such) beside its pairs, which cannot be added"
            )
    return found


def _other_heads(opened: Sequence[Opened]) -> list[str]:
    """Runs whose head is not the first one's."""
    first, *others = ({n: t for n, t in whole_tensors(run).items() if run.prepared.in_head(n)} for run in opened)
    return [
        f"{run.directory}: has a head of its own, and the sum of two heads is none; what can be combined are runs that "
        f"generate, or that share their head with {opened[0].directory}"
        for run, head in zip(opened[1:], others, strict=True)
        if head.keys() != first.keys() or not all(torch.equal(head[name], first[name]) for name in head)
    ]


def _sum(bare: Prepared, opened: Sequence[Opened], factors: Sequence[float]) -> Parts:
    """The runs' pairs, side by side."""
    empty = Parts({})
    all_blocks: dict[str, list[tuple[dict[str, Pair], float]]] = {}
    for run, factor in zip(opened, factors, strict=True):
        for path, layer in adapted_layers(run.prepared.model).items():
            all_blocks.setdefault(path, []).append((_pairs(layer), factor))
    pairs = {path: _added(bare, empty, path, blocks) for path, blocks in all_blocks.items()}
    dropout = max(m.dropout for run in opened for m in run.prepared.methods if isinstance(m, LoRA))
    return Parts(pairs, whole=whole_tensors(opened[0]), dropout=dropout)


def _added(
    bare: Prepared, parts: Parts, path: str, several: Sequence[tuple[dict[str, Pair], float]]
) -> dict[str, Pair]:
    """The sum of a module's updates: row block by row block, unless one of them is of the whole module."""
    if len({WHOLE in blocks for blocks, _ in several}) > 1:
        several = [({WHOLE: unfused(bare, parts, path, blocks)}, factor) for blocks, factor in several]
    names = dict.fromkeys(name for blocks, _ in several for name in blocks)
    found = {}
    for name in names:
        there = [(blocks[name], factor) for blocks, factor in several if name in blocks]
        found[name] = joined(parts, [pair for pair, _ in there], [factor for _, factor in there])
    return found


def _pairs(layer: Adapted) -> dict[str, Pair]:
    """A layer's pairs, with an alpha for the scaling alpha / r."""
    assert isinstance(layer, LoRALayer)
    update = layer.update
    blocks = {WHOLE: update} if isinstance(update, LowRank) else update.pairs()
    found = {}
    for name, pair in blocks.items():
        b, a = pair.pair()
        alpha = tidy(pair.scaling * a.shape[0])
        found[name] = Pair(b * (pair.scaling * a.shape[0] / alpha), a, alpha)
    return found


def _difference(made: Opened, opened: Sequence[Opened], factors: Sequence[float]) -> float:
    """The largest relative difference of any module's ΔW to the sum."""
    worst = 0.0
    for path, layer in adapted_layers(made.prepared.model).items():
        lefts: list[Tensor] = []
        rights: list[Tensor] = []
        for run, factor in zip(opened, factors, strict=True):
            own = adapted_layers(run.prepared.model).get(path)
            if isinstance(own, LoRALayer):
                left, right = own.update.factors()
                lefts.append(left * factor)
                rights.append(right)
        exact = low_rank_edit(layer.frozen, torch.cat(lefts, dim=1), torch.cat(rights))
        worst = max(worst, relative_difference(layer, exact))
    return worst
