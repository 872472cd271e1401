"""Modules that are trained whole beside a method's updates: a table of embeddings, an output head, norms."""

import difflib
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lorakit.arch import Architecture
from lorakit.errors import RecipeError
from lorakit.methods.base import Coverage
from lorakit.surgery import release, trainable_parameters

if TYPE_CHECKING:
    from torch import nn

_KEY = "method.also_train"


def modules_named(model: "nn.Module", name: str) -> list[str]:
    """Paths of the modules with parameters that a name means: the end of a path, or a glob on the whole path.

    Args:
        model: Before its modules are replaced.
        name: "embed_tokens", "layers.0.input_layernorm", "*.norm*"; a module with others in it means all of them.
    """
    chosen = [path for path, _ in model.named_modules() if path and _means(name, path)]
    inside = tuple(f"{path}." for path in chosen)
    return [path for path in _owners(model) if f"{path}.".startswith(inside)] if inside else []


def locate_whole(model: "nn.Module", row: Architecture, names: Sequence[str], adapted: Collection[str]) -> Coverage:
    """The modules that are to be trained whole, by the name that means them.

    Args:
        model: Frozen, but for the task's head; none of its modules replaced.
        row: Its architecture.
        names: See `modules_named`.
        adapted: Paths of the modules that get an update.

    Returns:
        "whole NAME" → paths of the modules that hold the parameters.

    Raises:
        RecipeError: A name means nothing, or what is trained anyway, or what gets an update too; names all such.
    """
    found = {name: modules_named(model, name) for name in names}
    updated = {id(p): path for path in adapted for p in model.get_submodule(path).parameters()}
    problems = []
    for name, paths in found.items():
        frozen = [p for path in paths for p in model.get_submodule(path).parameters(recurse=False)]
        both = next((updated[id(p)] for p in frozen if id(p) in updated), None)
        if not paths:
            problems.append(_no_match(model, row, name))
        elif both is not None:
            problems.append(
                f'{_KEY}: "{name}" names the weight of {both}, which method.targets adapts; leave it out of one of them'
            )
        elif all(p.requires_grad for p in frozen):
            problems.append(f'{_KEY}: "{name}" is of the task\'s head, which is trained anyway; leave it out')
    if problems:
        raise RecipeError(*problems)
    return {f"whole {name}": paths for name, paths in found.items()}


def release_whole(model: "nn.Module", found: Coverage) -> None:
    """Let the modules that `locate_whole` found be trained, in float32; a weight tied to another stays tied."""
    for paths in found.values():
        for path in paths:
            for parameter in model.get_submodule(path).parameters(recurse=False):
                release(parameter)


def check_quantised(model: "nn.Module", modules: Collection[str]) -> None:
    """Refuse to train whole what is in 4 bits.

    Args:
        model: With its methods applied.
        modules: Paths of the layers in 4 bits.

    Raises:
        RecipeError: Names those that would be.
    """
    trained = trainable_parameters(model)
    if both := [path for path in modules if f"{path}.weight" in trained]:
        raise RecipeError(
            f"method.also_train: {both[0]} ({len(both)} such) is in 4 bits with model.quantize, and cannot be trained "
            "whole; embeddings, norms and the output head can, a linear layer gets an update as one of method.targets"
        )


def _means(name: str, path: str) -> bool:
    return f".{path}".endswith(f".{name}") or fnmatchcase(path, name)


def _owners(model: "nn.Module") -> Iterator[str]:
    """Paths of the modules that have parameters themselves."""
    return (path for path, module in model.named_modules() if any(True for _ in module.parameters(recurse=False)))


def _no_match(model: "nn.Module", row: Architecture, name: str) -> str:
    tails = sorted({path.rpartition(".")[2] for path in _owners(model)})
    near = difflib.get_close_matches(name.rpartition(".")[2].strip("*"), tails, n=1, cutoff=0.5)
    hint = f'; did you mean "{near[0]}"?' if near else "."
    return (
        f'{_KEY}: "{name}" matches no module with parameters of this {row.model_type} model{hint} '
        f"Its modules end with {', '.join(tails)}"
    )
