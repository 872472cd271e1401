"""Finding what a recipe's targets name: the paper's names, `all-linear`, or globs. What cannot be had is refused.

A target that matches nothing, or only half of what it promises, is an error: peers' users report adapters that
silently left a typing error's or a mixture of experts' matrices frozen.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lorakit.arch import ALL_LINEAR, ARCHITECTURES, Architecture, Rows
from lorakit.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Site:
    """A matrix to adapt: a module, and, in a fused projection, the rows of one of the paper's names.

    Args:
        path: Full module path.
        name: The paper's name, or None where a pattern hit the module.
        rows: Output rows, or None for all.
    """

    path: str
    name: str | None = None
    rows: Rows | None = None

    @property
    def label(self) -> str:
        """For people: the path, and in a fused projection which part."""
        return self.path if self.name is None or self.rows is None else f"{self.path} ({self.name})"

    def matches(self, pattern: str) -> bool:
        """Whether a key of `ranks` or `alphas` means this matrix: the paper's name, or a glob on the path."""
        return pattern == self.name or fnmatchcase(self.path, pattern)


def locate(model: "nn.Module", row: Architecture, target: str) -> list[Site]:
    """Every matrix that one target names.

    Args:
        model: The model to search.
        row: Its architecture.
        target: One of the paper's names, `all-linear`, or a glob on the full module path.

    Raises:
        RecipeError: Nothing matches, or only a part of what the target promises; suggests what would.
    """
    if target in row.places:
        sites = _named(model, row, target)
    elif target == ALL_LINEAR:
        sites = _all_linear(model, row)
    else:
        sites = [Site(path) for path, _ in _matrices(model) if fnmatchcase(path, target)]
    if problem := _experts_left(model, row, target, sites) or _other_left(model, row, target):
        raise RecipeError(problem)
    if not sites:
        raise RecipeError(_no_match(model, row, target))
    return sites


def out_features(module: "nn.Module") -> int | None:
    """Rows of the matrix that a module multiplies with; None for a module that LoRA cannot adapt.

    A subclass with a forward of its own (a scaled embedding, say) does not compute W x, and could not be merged.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from lorakit.nf4 import is_nf4

    if is_nf4(module):
        return int(module.out_features)  # type: ignore[arg-type]
    rows = {nn.Linear.forward: "out_features", Conv1D.forward: "nf", nn.Embedding.forward: "embedding_dim"}
    attribute = rows.get(type(module).forward)
    return None if attribute is None else int(getattr(module, attribute))


def blocks(model: "nn.Module", row: Architecture) -> "dict[str, nn.Module]":
    """The model's blocks by their full module path, from the first to the last.

    Args:
        model: The model to search.
        row: Its architecture.

    Raises:
        RecipeError: The architecture has no row in the table, so that nobody knows what its blocks are.
    """
    if not row.blocks:
        raise RecipeError(
            f"method: it needs to know the model's blocks, and those of a {row.model_type} model are not known; "
            f"known are: {', '.join(ARCHITECTURES)}; lora works with any model, with patterns as targets"
        )
    wanted = re.compile(rf"(.*\.)?{re.escape(row.blocks)}\.\d+")
    return {path: module for path, module in model.named_modules() if wanted.fullmatch(path)}


def in_blocks(path: str, row: Architecture) -> bool:
    """Whether a module or parameter path lies inside one of the model's blocks."""
    return _block(path, row) is not None


def _named(model: "nn.Module", row: Architecture, name: str) -> list[Site]:
    place = row.places[name]
    wanted = re.compile(rf"(.*\.)?{re.escape(row.blocks)}\.\d+\.{re.escape(place.path)}")
    found = [(path, size) for path, size in _matrices(model) if wanted.fullmatch(path)]
    return [Site(path, name, place.rows(model.config, size) if place.rows else None) for path, size in found]


def _all_linear(model: "nn.Module", row: Architecture) -> list[Site]:
    """Every matrix in the blocks, embeddings and heads left out (as QLoRA does)."""
    sites = [site for name in row.places for site in _named(model, row, name)]
    there = {site.path for site in sites}
    paths = [path for path, _ in _matrices(model) if path not in there and in_blocks(path, row)]
    return sites + [Site(path) for path in paths if not hasattr(model.get_submodule(path), "embedding_dim")]


def _matrices(model: "nn.Module") -> Iterator[tuple[str, int]]:
    """Path and rows of every frozen matrix; what is trained already (a task's head) needs no adapter."""
    for path, module in model.named_modules():
        size = out_features(module)
        if size is not None and not module.get_parameter("weight").requires_grad:
            yield path, size


def _experts(model: "nn.Module", row: Architecture) -> dict[str, tuple[int, ...]]:
    """Path → shape of the blocks' fused expert weights: (experts, out, in) in one tensor, multiplied by no module."""
    from torch import nn

    found = {}
    for path, module in model.named_modules():
        if in_blocks(f"{path}.", row) and not isinstance(module, nn.modules.conv._ConvNd):
            own = module.named_parameters(prefix=path, recurse=False)
            found.update({name: tuple(parameter.shape) for name, parameter in own if parameter.ndim == 3})
    return found


def _experts_left(model: "nn.Module", row: Architecture, target: str, sites: list[Site]) -> str | None:
    """Why a target that names experts is refused, be it in every block or in some of them only."""
    experts = _experts(model, row)
    if not experts:
        return None
    named = [path for path in experts if fnmatchcase(path, target) or fnmatchcase(path.rpartition(".")[0], target)]
    dense = {_block(site.path, row) for site in sites}
    if target == ALL_LINEAR:
        left = list(experts)
        what = "would leave the experts frozen"
    elif target in row.places:
        left = [path for path in experts if _block(path, row) not in dense]
        what = "is fused into experts" + (f" in all but {len(dense)} blocks" if dense else "")
    else:
        left, what = named, "names fused experts"
    if not left:
        return None
    shape = "x".join(map(str, experts[left[0]]))
    attention = "q, k, v and o" if row.places else 'the attention by glob, such as "*.self_attn.*"'
    glob = f", or the dense blocks by glob, such as {sites[0].path}" if dense and target in row.places else ""
    return (
        f'method.targets: "{target}" {what} of this {row.model_type} model ({left[0]}, {shape} in one tensor), '
        f"which LoRA cannot adapt here; target {attention}{glob}"
    )


def _block(path: str, row: Architecture) -> str | None:
    """The block that a path lies in: "model.layers.3"; None outside of all blocks."""
    found = re.match(rf"(.*?(^|\.){re.escape(row.blocks)}\.\d+)\." if row.blocks else r"(.*?(^|\.)\d+)\.", path)
    return found.group(1) if found else None


def _other_left(model: "nn.Module", row: Architecture, target: str) -> str | None:
    """Why a matrix or a table with a forward of its own is refused."""
    from torch import nn

    for path, module in model.named_modules():
        everything = target == ALL_LINEAR and in_blocks(path, row) and isinstance(module, nn.Linear)
        named = everything or fnmatchcase(path, target)
        if named and isinstance(module, nn.Linear | nn.Embedding) and out_features(module) is None:
            return (
                f'method.targets: "{target}" names {path}, a {type(module).__name__} with a forward of its own: '
                "an update of it could not be merged"
            )
    return None


def _no_match(model: "nn.Module", row: Architecture, target: str) -> str:
    paths = [path for path, _ in _matrices(model)]
    tails = {path.rsplit(".", 1)[-1] for path in paths}
    known = [*row.places, ALL_LINEAR]
    near = difflib.get_close_matches(target.lstrip("*."), [*known, *tails], n=1, cutoff=0.5)
    hint = f'; did you mean "{near[0] if near[0] in known else "*." + near[0]}"?' if near else "."
    example = next((path for path in paths if in_blocks(path, row)), "*.dense")
    return (
        f'method.targets: "{target}" matches no frozen matrix of this {row.model_type} model{hint} '
        f"Allowed: {', '.join(known)}, or a glob on the full module path, such as {example}"
    )
