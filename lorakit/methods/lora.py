"""LoRA (Hu et al. 2021): h = W0 x + (alpha / r) B A x, with W0 frozen (section 4.1, equation 3).

Beside the paper's there are the options of rsLoRA, DoRA and PiSSA; LoRA+ is `train.optimizer.lr_b_ratio`. What the
papers promise is seldom what a well-tuned rate of plain LoRA does not reach: try the rate, the targets and the rank
first.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from lorakit.arch import Architecture
from lorakit.errors import RecipeError
from lorakit.methods.base import Coverage, Method
from lorakit.methods.whole import locate_whole, release_whole
from lorakit.surgery import biases, release, replace
from lorakit.targets import Site, locate

if TYPE_CHECKING:
    from torch import Tensor, nn

_TINY = 4
"""Rank in a tiny model."""


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
    also_train: list[str] = Field(default_factory=list)
    """Modules trained whole beside the updates (PEFT's `modules_to_save`), such as [embed_tokens, lm_head, norm]: ends
    of module paths, or globs on the full path; each must match, and none may be a target. Tied weights stay tied."""

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

    def apply(self, model: "nn.Module", row: Architecture, seed: int) -> Coverage:
        """Replace every targeted module by a `LoRALayer`."""
        from lorakit.layers.low_rank import LoRALayer
        from lorakit.layers.make import make_layer

        method = self.resolve(row)
        assert method.targets is not None
        if any(isinstance(module, LoRALayer) for module in model.modules()):
            raise RecipeError("method: lora stands there twice; use one, with patterns in `ranks` and `alphas`")
        found = {target: locate(model, row, target) for target in method.targets}
        sites = _by_module([site for group in found.values() for site in group])
        method._check_patterns([site for group in sites.values() for site in group])
        whole = locate_whole(model, row, self.also_train, sites)
        for path, group in sites.items():
            frozen = model.get_submodule(path)
            replace(model, path, make_layer(method, frozen, group, seed))
        method._release_biases(model, sites)
        release_whole(model, whole)
        return {target: sorted({site.path for site in group}) for target, group in found.items()} | whole

    def publish(self, state: "Mapping[str, Tensor]") -> "tuple[Method, Mapping[str, Tensor]]":
        """PiSSA leaves as a plain LoRA of the base: of twice the rank, and of the same scaling."""
        if self.init != "pissa":
            return self, state
        from lorakit.layers.pissa import as_plain

        factor = math.sqrt(2) if self.rslora else 2.0
        plain = {
            "init": "kaiming",
            "rank": 2 * self.rank,
            "alpha": factor * self.alpha,
            "ranks": {pattern: 2 * rank for pattern, rank in self.ranks.items()},
            "alphas": {pattern: factor * alpha for pattern, alpha in self.alphas.items()},
        }
        return self.model_copy(update=plain), as_plain(state)

    def _check_patterns(self, sites: list[Site]) -> None:
        """Every key of `ranks` and `alphas` must match a target, or it would silently do nothing."""
        problems = [
            f'method.{key}: "{pattern}" matches none of the adapted matrices'
            for key, table in (("ranks", self.ranks), ("alphas", self.alphas))
            for pattern in table
            if not any(site.matches(pattern) for site in sites)
        ]
        if problems:
            raise RecipeError(*problems)

    def _release_biases(self, model: "nn.Module", sites: Mapping[str, list[Site]]) -> None:
        if self.bias == "none":
            return
        from torch import nn

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
