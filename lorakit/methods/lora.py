"""LoRA (Hu et al. 2021): h = W0 x + (alpha / r) B A x, with W0 frozen (section 4.1, equation 3)."""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from lorakit.arch import Architecture, Rows
from lorakit.errors import RecipeError
from lorakit.methods.base import Adapted, Coverage, Method
from lorakit.runtime import derive
from lorakit.surgery import release, replace
from lorakit.targets import Site, locate, out_features


class LowRank(nn.Module):
    """One low-rank pair: x → scaling · B A x.

    The scaling belongs to the pair, since pairs of one fused projection may have ranks and alphas of their own.

    Args:
        in_features: Columns of A (r, in).
        out_features: Rows of B (out, r).
        rank: r.
        scaling: alpha / r, or alpha / √r with rsLoRA.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, scaling: float) -> None:
        super().__init__()
        self.scaling = scaling
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), in the adapter's precision, or autocast's."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.A.dtype)
        return F.linear(F.linear(x, self.A), self.B) * self.scaling

    def factors(self) -> tuple[Tensor, Tensor]:
        """(left, right) in float32 with ΔW = left · right, (out, r) and (r, in)."""
        return self.B.detach().float() * self.scaling, self.A.detach().float()


class LowRankEmbedding(LowRank):
    """A low-rank pair for a table of embeddings: ids → scaling · B A[:, ids]. As in loralib, A starts at zero."""

    def forward(self, x: Tensor) -> Tensor:
        """(…) ids → (…, dim)."""
        return F.linear(F.embedding(x, self.A.T), self.B) * self.scaling


class RowBlocks(nn.Module):
    """One pair per row block of a fused projection; rows of no block stay untouched (loralib's MergedLinear).

    Args:
        out_features: Rows of the fused projection.
        pairs: The paper's name → its pair.
        rows: The paper's name → its rows.
    """

    def __init__(self, out_features: int, pairs: dict[str, LowRank], rows: Mapping[str, Rows]) -> None:
        super().__init__()
        self.out_features = out_features
        self._slices = {name: block for name, block in rows.items() if isinstance(block, slice)}
        for name, pair in pairs.items():
            self.add_module(name, pair)
            if name not in self._slices:
                self.register_buffer(f"{name}_rows", torch.tensor(rows[name]), persistent=False)

    def pairs(self) -> dict[str, LowRank]:
        """The paper's name → its pair."""
        return {name: pair for name, pair in self.named_children() if isinstance(pair, LowRank)}

    def rows(self, name: str) -> slice | Tensor:
        """The rows of one pair, to index with: a range, or row numbers where the heads' parts alternate."""
        return self._slices[name] if name in self._slices else self.get_buffer(f"{name}_rows")

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out): a fresh tensor, since adding into a slice of the projection's output breaks autograd."""
        delta: Tensor | None = None
        for name, pair in self.pairs().items():
            part = pair(x)
            if delta is None:
                delta = part.new_zeros(*part.shape[:-1], self.out_features)
            delta[..., self.rows(name)] = part
        assert delta is not None
        return delta

    def factors(self) -> tuple[Tensor, Tensor]:
        """(left, right) with ΔW = left · right: the A's stacked, the B's placed into their rows."""
        pairs = self.pairs()
        right = torch.cat([pair.factors()[1] for pair in pairs.values()])
        left = right.new_zeros(self.out_features, right.shape[0])
        column = 0
        for name, pair in pairs.items():
            block = pair.factors()[0]
            left[self.rows(name), column : column + block.shape[1]] = block
            column += block.shape[1]
        return left, right


Update = LowRank | RowBlocks
T = TypeVar("T")


class LowRankEdit:
    """W ← W + left · right, on the tensor as it is stored.

    Args:
        left: (rows, r).
        right: (r, columns).
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right

    def rows(self, block: Tensor, start: int) -> Tensor:
        """See `Edit`."""
        return block + self.left[start : start + block.shape[0]] @ self.right


class LoRALayer(Adapted):
    """Equation 3: the frozen projection plus the scaled update of the dropped-out input.

    Args:
        frozen: An `nn.Linear`, transformers' `Conv1D`, or an `nn.Embedding`.
        update: The one update of this layer; assign another to switch adapters.
        dropout: On the update's input only (loralib's semantics).
    """

    def __init__(self, frozen: nn.Module, update: Update, dropout: float) -> None:
        super().__init__()
        self.frozen = frozen
        self.update = update
        self.dropout: nn.Module = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out); embeddings: (…) ids → (…, dim)."""
        h: Tensor = self.frozen(x)
        delta: Tensor = self.update(self.dropout(x))
        return h + delta.to(h.dtype)

    def edit(self) -> LowRankEdit:
        """ΔW in the orientation of the stored weight: Conv1D (in, out) and embeddings (vocab, dim) are transposed."""
        left, right = self.update.factors()
        transposed = isinstance(self.update, LowRankEmbedding) or type(self.frozen).__name__ == "Conv1D"
        return LowRankEdit(right.T, left.T) if transposed else LowRankEdit(left, right)


class LoRA(Method):
    """Low-rank adaptation of chosen matrices."""

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
    init: Literal["kaiming", "gaussian"] = "kaiming"
    """Of A; B starts at zero. kaiming: U(±1/√in), as loralib; gaussian: N(0, 0.02²), as the authors' DeBERTa code."""
    rslora: bool = False
    """Scale by alpha / √rank instead (rsLoRA, arXiv 2312.03732)."""
    ranks: dict[str, PositiveInt] = Field(default_factory=dict)
    """Ranks of some matrices: one of the paper's names or a glob → rank; the first that matches counts."""
    alphas: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Alphas of some matrices, likewise."""
    bias: Literal["none", "lora_only", "all"] = "none"
    """Biases trained too: those of adapted modules, or all (loralib's `mark_only_lora_as_trainable`)."""

    def resolve(self, row: Architecture) -> "LoRA":
        """Fill in the default targets."""
        return self if self.targets else self.model_copy(update={"targets": row.default_targets})

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
            update = method._update(frozen, group, seed)
            replace(model, path, LoRALayer(frozen, update, 0.0 if isinstance(frozen, nn.Embedding) else self.dropout))
        method._release_biases(model, sites)
        return {target: sorted({site.path for site in group}) for target, group in found.items()}

    def _update(self, frozen: nn.Module, group: list[Site], seed: int) -> Update:
        rows = {site.name: site.rows for site in group if site.name and site.rows}
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
        if rank > min(out, in_):
            most = f"the largest rank is {min(out, in_)}"
            raise RecipeError(f"method.rank: {rank} exceeds the {out}x{in_} matrix {_label(site)}; {most}")
        alpha = _first(self.alphas, site, self.alpha)
        scaling = alpha / math.sqrt(rank) if self.rslora else alpha / rank
        table = isinstance(frozen, nn.Embedding)
        pair = (LowRankEmbedding if table else LowRank)(in_, out, rank, scaling)
        self._initialise(pair, torch.Generator().manual_seed(derive(seed, "lora", site.path, site.name or "")))
        weight = frozen.weight
        assert isinstance(weight, Tensor)
        return pair.to(weight.device) if not weight.is_meta else pair.to("meta")

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
            chosen = [p for name, p in model.named_parameters() if name.rsplit(".", 1)[-1] == "bias"]
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
    weight = frozen.weight
    assert isinstance(weight, Tensor)
    in_ = weight.numel() // out
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
