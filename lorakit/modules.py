"""Which of a model's modules a method adapts, and what stays frozen, at a glance."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lorakit.layers.adapted import Adapted
from lorakit.methods.base import Coverage
from lorakit.nf4 import elements, kind_of
from lorakit.surgery import canonical

_BLOCK = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True)
class ModuleRow:
    """Modules that stand at the same place of every block.

    Args:
        path: With a star for the number of the block: as a pattern of `targets`.
        kind: Their class.
        count: How many there are.
        adapted: How many of them a target matched.
        by: The targets that did.
        frozen: Parameters that stay as they are.
        trained: Parameters that are trained.
    """

    path: str
    kind: str
    count: int
    adapted: int
    by: tuple[str, ...]
    frozen: int
    trained: int


def module_rows(model: nn.Module, coverage: Sequence[Coverage]) -> list[ModuleRow]:
    """One row for each place of a block, in the model's order; shared parameters count where they stand first.

    Args:
        model: Prepared; the meta device will do.
        coverage: What each method's targets matched.
    """
    adapted = {canonical(f"{path}."): module for path, module in model.named_modules() if isinstance(module, Adapted)}
    frozen: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        path = next((path for path in adapted if canonical(name).startswith(path)), None)
        owner = path.rstrip(".") if path else canonical(name).rpartition(".")[0]
        (trained if parameter.requires_grad else frozen)[owner] += elements(parameter)
    places: dict[str, list[str]] = {}
    for owner in dict.fromkeys([*frozen, *trained]):
        places.setdefault(_BLOCK.sub(".*", owner), []).append(owner)
    order = {canonical(path): index for index, (path, _) in enumerate(model.named_modules())}
    hits = [(target, set(paths)) for found in coverage for target, paths in found.items()]
    rows = []
    for place, owners in sorted(places.items(), key=lambda item: order.get(item[1][0], -1)):
        module = model.get_submodule(owners[0])
        kind = kind_of(module.frozen if isinstance(module, Adapted) else module)
        by = tuple(target for target, paths in hits if paths & set(owners))
        count = sum(isinstance(model.get_submodule(owner), Adapted) for owner in owners)
        sums = (sum(counter[owner] for owner in owners) for counter in (frozen, trained))
        rows.append(ModuleRow(place, kind, len(owners), count, by, *sums))
    return rows


def parameter_groups(model: nn.Module, heads: Sequence[str]) -> dict[str, int]:
    """Parameters in all and trained, and whose the trained ones are: the method's or the task's head.

    Args:
        model: Prepared.
        heads: Modules of the task's head; none for generation.
    """
    sizes = {canonical(name): p.numel() for name, p in model.named_parameters() if p.requires_grad}
    inside = tuple(f"{name}." for name in heads)
    head = sum(size for name, size in sizes.items() if name.startswith(inside) and ".update." not in name)
    total, trainable = sum(elements(p) for p in model.parameters()), sum(sizes.values())
    return {"total": total, "trainable": trainable, "method": trainable - head, "head": head}
