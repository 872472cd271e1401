"""LoRA (Hu et al. 2021): h = W0 x + (alpha / r) B A x, with W0 frozen (section 4.1, equation 3).

Beside the paper's there are the options of rsLoRA, DoRA and PiSSA; LoRA+ is `train.optimizer.lr_b_ratio`. What the
papers promise is seldom what a well-tuned rate of plain LoRA does not reach: try the rate, the targets and the rank
first.
"""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal, TypeVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn

from lorakit.arch import Architecture, Rows
from lorakit.errors import RecipeError
from lorakit.methods.base import Coverage, Method
from lorakit.methods.dora import DoRALayer
from lorakit.methods.low_rank import LoRALayer, LowRank, LowRankEmbedding, RowBlocks, Update
from lorakit.methods.pissa import Principal, as_plain, matrix
from lorakit.nf4 import elements
from lorakit.runtime import derive
from lorakit.surgery import biases, release, replace
from lorakit.targets import Site, locate, out_features

_TINY = 4
"""Rank in a tiny model."""

T = TypeVar("T")


class LoRA(Method):
    """Low-rank adaptation of chosen matrices.

    The usual rates are those of the paper's RoBERTa and GPT-2 runs (Tables 9 and 11).
    """

    usual_lr: ClassVar[tuple[float, float]] = (5e-4, 2e-4)
    combines_with: ClassVar[tuple[str, ...]] = ("preembed", "prelayer", "prefix_kv")

    name: Literal["lora"] = "lora"
    rank: PositiveInt = 8
    """r: rows of A and columns of B."""
    alpha: PositiveFloat = 16
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """On the input of the update, not of the frozen projection."""
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    """The paper's names (q k v o up gate down), `all-linear`, or globs on the full module path; each must match.
    null: all-linear for decoders, [q, v] for encoders."""
    init: Literal["kaiming", "gaussian", "pissa"] = "kaiming"
    """Of A; B starts at zero. kaiming: U(±1/√in), as loralib; gaussian: N(0, 0.02²), as the authors' DeBERTa code.
    pissa: A and B from the matrix's largest singular values (PiSSA, arXiv 2404.02948): a faster start, at the price of
    a decomposition; published as a plain LoRA of twice the rank, of the unchanged base."""
    rslora: bool = False
    """Scale by alpha / √rank instead (rsLoRA, arXiv 2312.03732): at rank 64 and above the update keeps its strength; a
    part of the gain is that of a higher learning rate."""
    dora: bool = False
    """Train each output's magnitude apart from its direction (DoRA, arXiv 2402.09353, section 4). About a quarter
    slower, until it is merged; it gains mostly at low ranks, 8 and below."""
    ranks: dict[str, PositiveInt] = Field(default_factory=dict)
    """Ranks of some matrices: one of the paper's names or a glob → rank; the first that matches counts."""
    alphas: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Alphas of some matrices, likewise."""
    bias: Literal["none", "lora_only", "all"] = "none"
    """Biases trained too: those of adapted modules, or all (loralib's `mark_only_lora_as_trainable`)."""

    @field_validator("dora")
    @classmethod
    def _one_start(cls, dora: bool, info: ValidationInfo) -> bool:
        if dora and info.data.get("init") == "pissa":
            raise ValueError("the published adapter of init: pissa is a plain LoRA; use one of the two")
        return dora

    def shrunk(self) -> "LoRA":
        """Ranks within tiny matrices; the scaling alpha / rank changes with them."""
        ranks = {pattern: min(_TINY, rank) for pattern, rank in self.ranks.items()}
        return self.model_copy(update={"rank": min(_TINY, self.rank), "ranks": ranks})

    def resolve(self, row: Architecture) -> "LoRA":
        """Fill in the default targets."""
        return self if self.targets else self.model_copy(update={"targets": row.default_targets})

    def needs_whole_weights(self) -> str | None:
        """Biases are the base's own."""
        return None if self.bias == "none" else f"bias: {self.bias}"

    def apply(self, model: nn.Module, row: Architecture, seed: int) -> Coverage:
        """Replace every targeted module by a `LoRALayer`."""
        method = self.resolve(row)
        assert method.targets is not None
        if any(isinstance(module, LoRALayer) for module in model.modules()):
            raise RecipeError("method: lora stands there twice; use one, with patterns in `ranks` and `alphas`")
        found = {target: locate(model, row, target) for target in method.targets}
        sites = _by_module([site for group in found.values() for site in group])
        method._check_patterns([site for group in sites.values() for site in group])
        for path, group in sites.items():
            frozen = model.get_submodule(path)
            replace(model, path, method._layer(frozen, group, seed))
        method._release_biases(model, sites)
        return {target: sorted({site.path for site in group}) for target, group in found.items()}

    def publish(self, state: Mapping[str, Tensor]) -> tuple[Method, Mapping[str, Tensor]]:
        """PiSSA leaves as a plain LoRA of the base: of twice the rank, and of the same scaling."""
        if self.init != "pissa":
            return self, state
        factor = math.sqrt(2) if self.rslora else 2.0
        plain = {
            "init": "kaiming",
            "rank": 2 * self.rank,
            "alpha": factor * self.alpha,
            "ranks": {pattern: 2 * rank for pattern, rank in self.ranks.items()},
            "alphas": {pattern: factor * alpha for pattern, alpha in self.alphas.items()},
        }
        return self.model_copy(update=plain), as_plain(state)

    def _layer(self, frozen: nn.Module, group: list[Site], seed: int) -> LoRALayer:
        table = isinstance(frozen, nn.Embedding)
        if table and (self.dora or self.init == "pissa"):
            key, other = ("dora", "false") if self.dora else ("init", "kaiming")
            raise RecipeError(
                f"method.{key}: {group[0].path} is a table of embeddings, and {'DoRA' if self.dora else 'PiSSA'} is of "
                f"matrices; leave it out of method.targets, or set method.{key} to {other}"
            )
        rows = {site.name: site.rows for site in group if site.name and site.rows}
        update = self._update(frozen, group, rows, seed)
        if self.dora:
            return DoRALayer(frozen, update, self.dropout, rows)
        return LoRALayer(frozen, update, 0.0 if table else self.dropout)

    def _update(self, frozen: nn.Module, group: list[Site], rows: Mapping[str, Rows], seed: int) -> Update:
        if not rows:
            return self._pair(frozen, group[0], seed)
        size = out_features(frozen)
        assert size is not None
        pairs = {site.name: self._pair(frozen, site, seed) for site in group if site.name}
        blocks = RowBlocks(size, pairs, rows)
        device = frozen.get_parameter("weight").device
        return blocks if device.type == "meta" else blocks.to(device)  # row numbers are real even in a skeleton

    def _pair(self, frozen: nn.Module, site: Site, seed: int) -> LowRank:
        out, in_ = _shape(frozen, site)
        rank = _first(self.ranks, site, self.rank)
        largest = min(out, in_) // (2 if self.init == "pissa" else 1)
        if rank > largest:
            most = f"the largest rank is {largest}"
            most += ", since init: pissa publishes twice the rank" if self.init == "pissa" else ""
            raise RecipeError(f"method.rank: {rank} exceeds the {out}x{in_} matrix {_label(site)}; {most}")
        alpha = _first(self.alphas, site, self.alpha)
        scaling = alpha / math.sqrt(rank) if self.rslora else alpha / rank
        kind = LowRankEmbedding if isinstance(frozen, nn.Embedding) else Principal if self.init == "pissa" else LowRank
        pair = kind(in_, out, rank, scaling)
        weight = frozen.get_parameter("weight")
        if not isinstance(pair, Principal):
            self._initialise(pair, torch.Generator().manual_seed(derive(seed, "lora", site.path, site.name or "")))
        elif not weight.is_meta:
            pair.begin(matrix(frozen, site.rows))
        return pair.to(weight.device)

    def _initialise(self, pair: LowRank, generator: torch.Generator) -> None:
        if isinstance(pair, LowRankEmbedding):
            nn.init.zeros_(pair.A)
            nn.init.normal_(pair.B, generator=generator)
        elif self.init == "gaussian":
            nn.init.normal_(pair.A, std=0.02, generator=generator)
        else:
            nn.init.kaiming_uniform_(pair.A, a=math.sqrt(5), generator=generator)

    def _check_patterns(self, sites: list[Site]) -> None:
        """Every key of `ranks` and `alphas` must match a target, or it would silently do nothing."""
        problems = [
            f'method.{key}: "{pattern}" matches none of the adapted matrices'
            for key, table in (("ranks", self.ranks), ("alphas", self.alphas))
            for pattern in table
            if not any(_matches(pattern, site) for site in sites)
        ]
        if problems:
            raise RecipeError(*problems)

    def _release_biases(self, model: nn.Module, sites: Mapping[str, list[Site]]) -> None:
        if self.bias == "none":
            return
        if self.bias == "all":
            chosen = list(biases(model).values())
        else:
            layers = [model.get_submodule(path) for path in sites]
            chosen = [layer.bias for layer in layers if isinstance(layer.bias, nn.Parameter)]
        if not chosen:
            raise RecipeError(f"method.bias: {self.bias}, but no such module of this model has a bias; use none")
        for parameter in chosen:
            release(parameter)


def _by_module(sites: list[Site]) -> dict[str, list[Site]]:
    """Sites grouped by module; a module adapted whole cannot be adapted by row blocks as well."""
    groups: dict[str, dict[tuple[str, bool], Site]] = {}
    for site in sites:
        group = groups.setdefault(site.path, {})
        key = ("", True) if site.rows is None else (site.name or "", False)
        if key not in group or site.name:  # a name says more than the pattern that hit the same module
            group[key] = site
    for path, group in groups.items():
        if len({whole for _, whole in group}) > 1:
            raise RecipeError(f"method.targets: {path} is targeted both whole and by row block; choose one")
    return {path: list(group.values()) for path, group in groups.items()}


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


def _matches(pattern: str, site: Site) -> bool:
    return pattern == site.name or fnmatchcase(site.path, pattern)


def _first(table: Mapping[str, T], site: Site, default: T) -> T:
    return next((value for pattern, value in table.items() if _matches(pattern, site)), default)


def _label(site: Site) -> str:
    return site.path if site.name is None or site.rows is None else f"{site.path} ({site.name})"
