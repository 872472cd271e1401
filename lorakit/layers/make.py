"""Makes LoRA's layers as a recipe has them: ranks, scalings, initial values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from lorakit.arch import Rows
from lorakit.errors import RecipeError
from lorakit.layers.dora import DoRALayer
from lorakit.layers.low_rank import LoRALayer, LowRank, LowRankEmbedding, RowBlocks, Update
from lorakit.layers.pissa import Principal, matrix
from lorakit.nf4 import elements
from lorakit.runtime import derive
from lorakit.targets import Site, out_features

T = TypeVar("T")


def make_layer(method: Any, frozen: nn.Module, group: Sequence[Site], seed: int) -> LoRALayer:
    """The layer that stands in the place of one module, with initial values from the seed and the module's path.

    Args:
        method: The recipe's `LoRA`, resolved.
        frozen: The module.
        group: The matrices in it that are adapted.
        seed: The run's.

    Raises:
        RecipeError: An option does not go with this module.
    """
    table = isinstance(frozen, nn.Embedding)
    if table and (method.dora or method.init == "pissa"):
        key, other = ("dora", "false") if method.dora else ("init", "kaiming")
        raise RecipeError(
            f"method.{key}: {group[0].path} is a table of embeddings, and {'DoRA' if method.dora else 'PiSSA'} is of "
            f"matrices; leave it out of method.targets, or set method.{key} to {other}"
        )
    rows = {site.name: site.rows for site in group if site.name and site.rows}
    update = _update(method, frozen, group, rows, seed)
    if method.dora:
        return DoRALayer(frozen, update, method.dropout, rows)
    return LoRALayer(frozen, update, 0.0 if table else method.dropout)


def _update(method: Any, frozen: nn.Module, group: Sequence[Site], rows: Mapping[str, Rows], seed: int) -> Update:
    if not rows:
        return _pair(method, frozen, group[0], seed)
    size = out_features(frozen)
    assert size is not None
    pairs = {site.name: _pair(method, frozen, site, seed) for site in group if site.name}
    blocks = RowBlocks(size, pairs, rows)
    device = frozen.get_parameter("weight").device
    return blocks if device.type == "meta" else blocks.to(device)  # row numbers are real even in a skeleton


def _pair(method: Any, frozen: nn.Module, site: Site, seed: int) -> LowRank:
    out, in_ = _shape(frozen, site)
    rank = _first(method.ranks, site, method.rank)
    largest = min(out, in_) // (2 if method.init == "pissa" else 1)
    if rank > largest:
        most = f"the largest rank is {largest}"
        most += ", since init: pissa publishes twice the rank" if method.init == "pissa" else ""
        raise RecipeError(f"method.rank: {rank} exceeds the {out}x{in_} matrix {site.label}; {most}")
    alpha = _first(method.alphas, site, method.alpha)
    scaling = alpha / math.sqrt(rank) if method.rslora else alpha / rank
    kind = LowRankEmbedding if isinstance(frozen, nn.Embedding) else Principal if method.init == "pissa" else LowRank
    pair = kind(in_, out, rank, scaling)
    weight = frozen.get_parameter("weight")
    if not isinstance(pair, Principal):
        _initialise(method, pair, torch.Generator().manual_seed(derive(seed, "lora", site.path, site.name or "")))
    elif not weight.is_meta:
        pair.begin(matrix(frozen, site.rows))
    return pair.to(weight.device)


def _initialise(method: Any, pair: LowRank, generator: torch.Generator) -> None:
    if isinstance(pair, LowRankEmbedding):
        nn.init.zeros_(pair.A)
        nn.init.normal_(pair.B, generator=generator)
    elif method.init == "gaussian":
        nn.init.normal_(pair.A, std=0.02, generator=generator)
    else:
        nn.init.kaiming_uniform_(pair.A, a=math.sqrt(5), generator=generator)


def _shape(frozen: nn.Module, site: Site) -> tuple[int, int]:
    """(out, in) of the matrix at a site; for embeddings (dim, vocab)."""
    out = out_features(frozen)
    assert out is not None
    in_ = elements(frozen.get_parameter("weight")) // out
    if isinstance(site.rows, slice):
        out = len(range(out)[site.rows])
    elif site.rows is not None:
        out = len(site.rows)
    return out, in_


def _first(table: Mapping[str, T], site: Site, default: T) -> T:
    return next((value for pattern, value in table.items() if site.matches(pattern)), default)
