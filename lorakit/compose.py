"""Run directories whose adapter was not trained here but put together from low-rank pairs: imported, or combined.

What a recipe says by targets, ranks and alphas is found again from the pairs, so that such a run is one like any other.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from lorakit.arch import ALL_LINEAR
from lorakit.checkpoint import ADAPTER, RECIPE, Opened, Provenance, head_of, open_run, save_adapter
from lorakit.errors import CheckpointError, RecipeError
from lorakit.layers.low_rank import stacked
from lorakit.merge_plan import read_rows
from lorakit.methods.lora import LoRA
from lorakit.methods.whole import modules_named
from lorakit.model import Prepared, prepare
from lorakit.recipe import Recipe, dump
from lorakit.runtime import atomic_directory
from lorakit.surgery import load_trainable, trainable_parameters
from lorakit.targets import Site, locate, out_features
from lorakit.weights import model_entries

WHOLE = ""
"""In the place of a row block's name: the pair is of the whole matrix."""
_BLOCK = re.compile(r"\.\d+(?=\.)")


@dataclass(frozen=True)
class Pair:
    """A low-rank pair of one matrix: ΔW = alpha / r · b a, or alpha / √r with rsLoRA.

    Args:
        b: (out, r), float32.
        a: (r, in), float32.
        alpha: See above.
    """

    b: Tensor
    a: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of a."""
        return self.a.shape[0]

    @property
    def setting(self) -> tuple[int, float]:
        """What a recipe says of it."""
        return self.rank, self.alpha


@dataclass(frozen=True)
class Parts:
    """An adapter in this package's terms, whoever made it.

    Args:
        pairs: Module path → the pairs of its row blocks by the paper's names, or one pair under `WHOLE`.
        magnitudes: DoRA's, (out,), by module path.
        whole: What was trained beside them, such as a head and biases, by canonical name.
        rslora: Whether the pairs' scaling is alpha / √r.
        dropout: In training.
        bias: Which biases `whole` holds, as in a recipe.
        also: Paths of the modules, other than the head's, of which `whole` holds every parameter.
        unsaved: Names of modules that were to be trained whole, and of which `whole` holds nothing.
    """

    pairs: dict[str, dict[str, Pair]]
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    rslora: bool = False
    dropout: float = 0.0
    bias: Literal["none", "lora_only", "all"] = "none"
    also: tuple[str, ...] = ()
    unsaved: tuple[str, ...] = ()

    def scaling(self, pair: Pair) -> float:
        """That of one of its pairs."""
        return pair.alpha / self.root(pair.rank)

    def root(self, rank: int) -> float:
        """What alpha is divided by."""
        return math.sqrt(rank) if self.rslora else rank

    def state(self) -> dict[str, Tensor]:
        """The adapter's tensors by canonical name."""
        found = dict(self.whole)
        for path, blocks in self.pairs.items():
            for name, pair in blocks.items():
                prefix = f"{path}.update.{name}." if name else f"{path}.update."
                found |= {f"{prefix}A": pair.a, f"{prefix}B": pair.b}
        found |= {f"{path}.magnitude": value for path, value in self.magnitudes.items()}
        return {name: value.contiguous() for name, value in found.items()}


def joined(parts: Parts, pairs: list[Pair], factors: list[float] | None = None) -> Pair:
    """One pair whose ΔW is the sum of those of several pairs of one matrix: the ranks add up, nothing is rounded away.

    Args:
        parts: For the kind of scaling.
        pairs: Of equal shapes but for the ranks.
        factors: By what each ΔW is multiplied; None: all by 1.
    """
    rank = sum(pair.rank for pair in pairs)
    alpha = tidy(parts.scaling(pairs[0]) * parts.root(rank))
    scaling = alpha / parts.root(rank)
    weights = factors or [1.0] * len(pairs)
    b = [pair.b * (weight * parts.scaling(pair) / scaling) for pair, weight in zip(pairs, weights, strict=True)]
    return Pair(torch.cat(b, dim=1), torch.cat([pair.a for pair in pairs]), alpha)


def tidy(alpha: float) -> float:
    """An alpha without the last digits of the arithmetic that it comes from."""
    return round(alpha, 12)


def method_of(prepared: Prepared, parts: Parts) -> tuple[LoRA, Parts]:
    """The method section that stands for an adapter, and the adapter as that section shapes it.

    Row blocks that a recipe has no words for (q in some blocks of the model only) become one pair of their whole
    projection, of the same ΔW; so does a rank beyond a matrix's size become one of that size.

    Args:
        prepared: The bare base with the task's head.
        parts: The adapter.

    Raises:
        CheckpointError: A value is none that a recipe can have, such as an alpha of 0.
        RecipeError: A module cannot be adapted here.
    """
    fitted = {path: {name: _fitted(parts, pair) for name, pair in blocks} for path, blocks in _ordered(prepared, parts)}
    pairs = fitted
    patterns = _patterns(prepared, pairs)
    if patterns is None:
        pairs = {path: {WHOLE: unfused(prepared, parts, path, blocks)} for path, blocks in fitted.items()}
        patterns = _patterns(prepared, pairs)
        assert patterns is not None
    settings = Counter(pair.setting for blocks in pairs.values() for pair in blocks.values())
    (rank, alpha), _ = settings.most_common(1)[0]
    targets, ranks, alphas = patterns
    section = {
        "rank": rank,
        "alpha": alpha,
        "dropout": parts.dropout,
        "targets": targets,
        "rslora": parts.rslora,
        "dora": bool(parts.magnitudes),
        "ranks": {pattern: value for pattern, value in ranks.items() if value != rank},
        "alphas": {pattern: value for pattern, value in alphas.items() if value != alpha},
        "bias": parts.bias,
        "also_train": _also(prepared, parts.also),
    }
    try:
        method = LoRA.model_validate(section)
    except ValidationError as error:
        raise CheckpointError(*(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error
    return method, replace(parts, pairs=pairs)


def _also(prepared: Prepared, paths: Sequence[str]) -> list[str]:
    """Names that mean these modules and no others: last ones where these do, else whole paths."""
    tails: dict[str, list[str]] = {}
    for path in paths:
        tails.setdefault(path.rpartition(".")[2], []).append(path)
    found: list[str] = []
    for tail, group in tails.items():
        found += [tail] if set(modules_named(prepared.model, tail)) == set(group) else sorted(group)
    return found


def write_run(out: Path, recipe: Recipe, bare: Prepared, parts: Parts, source: str, note: str) -> Opened:
    """Write a run directory that holds an adapter, and open it for the proof.

    Args:
        out: The directory to make; checked by the caller.
        recipe: All but the method, which is found from the adapter.
        bare: The base with the recipe's head and no method; a skeleton.
        parts: The adapter. What it lacks of the head is taken from the base's files, where they have one.
        source: Where the adapter came from, for the errors.
        note: Stands in front of the recipe.

    Returns:
        The run, opened as a skeleton; its directory is `out`.

    Raises:
        CheckpointError: The adapter does not fit the base and the task; lists every tensor that does not. Nothing is
            written then.
        RecipeError: A module cannot be adapted here.
        LorakitError: The disk refuses.
    """
    method, parts = method_of(bare, parts)
    recipe = recipe.model_copy(update={"method": [method]})
    prepared = prepare(recipe.model, [method], head_of(recipe), recipe.train.seed, skeleton=True)
    state = parts.state()
    for name in trainable_parameters(prepared.model):
        if name not in state and name in prepared.file_names and prepared.in_head(name):
            state[name] = base_tensor(prepared, name)
    load_trainable(prepared.model, state, source)
    text = "".join(f"# {line}\n" for line in note.splitlines()) + dump(recipe)
    with atomic_directory(out) as beside:
        (beside / RECIPE).write_text(text)
        save_adapter(beside / ADAPTER, state, Provenance.of(prepared))
        opened = open_run(beside, skeleton=True)
    opened.directory = out
    return opened


def run_name(out: Path) -> str:
    """A name for a recipe, from that of the run directory that will hold it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", out.resolve().name).lstrip("._-")[:100] or "run"


def base_tensor(prepared: Prepared, name: str) -> Tensor:
    """A tensor of the base's files in float32, by canonical name, which must be in `file_names`."""
    entry = model_entries(prepared.located.directory)[prepared.file_names[name]]
    return read_rows(entry, 0, entry.shape)


def _ordered(prepared: Prepared, parts: Parts) -> list[tuple[str, list[tuple[str, Pair]]]]:
    """Modules and row blocks in the model's order, whatever theirs is in a file."""
    names = [WHOLE, *prepared.row.places]
    paths = [path for path, _ in prepared.model.named_modules() if path in parts.pairs]
    return [(path, sorted(parts.pairs[path].items(), key=lambda item: names.index(item[0]))) for path in paths]


def _fitted(parts: Parts, pair: Pair) -> Pair:
    """The pair, of no higher rank than its matrix has: else b a itself and a matrix of ones on the diagonal."""
    out, in_ = pair.b.shape[0], pair.a.shape[1]
    rank = min(out, in_)
    if pair.rank <= rank:
        return pair
    product, one = pair.b @ pair.a, torch.eye(rank)
    alpha = tidy(parts.scaling(pair) * parts.root(rank))
    return Pair(one, product, alpha) if out <= in_ else Pair(product, one, alpha)


def unfused(prepared: Prepared, parts: Parts, path: str, blocks: Mapping[str, Pair]) -> Pair:
    """One pair of the whole module in the place of its row blocks'."""
    if WHOLE in blocks and len(blocks) == 1:
        return blocks[WHOLE]
    count = out_features(prepared.model.get_submodule(path))
    assert count is not None
    whole = []
    for name, pair in blocks.items():
        rows = slice(0, count) if name == WHOLE else rows_of(prepared, path, name)
        b, a = stacked(count, [(rows, pair.b, pair.a)])
        whole.append(Pair(b, a, pair.alpha))
    return _fitted(parts, joined(parts, whole))


def rows_of(prepared: Prepared, path: str, name: str) -> slice | tuple[int, ...]:
    """The output rows of one of the paper's matrices in a fused projection."""
    count = out_features(prepared.model.get_submodule(path))
    rows = prepared.row.places[name].rows
    assert count is not None
    assert rows is not None
    return rows(prepared.model.config, count)


Patterns = tuple[list[str], dict[str, int], dict[str, float]]


def _patterns(prepared: Prepared, pairs: Mapping[str, Mapping[str, Pair]]) -> Patterns | None:
    """Targets, ranks and alphas (of all of them) that describe the pairs; None where no recipe could.

    A recipe names row blocks in all of the model's blocks or in none, and gives them a rank by that name or, together
    with the other blocks of a module, by the module's path.
    """
    groups = _groups(prepared, pairs)
    if groups is None:
        return None
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    uneven: set[str] = set()
    for label, group in groups.items():
        settings = {pair.setting for pair in group.values()}
        if len(settings) == 1:
            ranks[label], alphas[label] = settings.pop()
        else:
            uneven |= group.keys()
    for path in uneven:
        settings = {pair.setting for pair in pairs[path].values()}
        if len(settings) > 1:
            return None
        ranks[path], alphas[path] = settings.pop()
    # A path's own value stands in front: of the patterns that match, the first counts.
    ordered = sorted(ranks, key=lambda pattern: pattern not in uneven)
    every = {(path, name) for path, blocks in pairs.items() for name in blocks}
    targets = [ALL_LINEAR] if _hits(prepared, ALL_LINEAR) == every else list(groups)
    return targets, {key: ranks[key] for key in ordered}, {key: alphas[key] for key in ordered}


def _groups(prepared: Prepared, pairs: Mapping[str, Mapping[str, Pair]]) -> dict[str, dict[str, Pair]] | None:
    """Target → the pairs that it names, by path; None where a row block cannot be named."""
    found: dict[str, dict[str, Pair]] = {}
    alike: dict[str, dict[str, Pair]] = {}
    for path, blocks in pairs.items():
        if WHOLE in blocks and len(blocks) > 1:
            return None
        for name, pair in blocks.items():
            (found.setdefault(name, {}) if name else alike.setdefault(_BLOCK.sub(".*", path, count=1), {}))[path] = pair
    for name, group in found.items():
        if _hits(prepared, name) != {(path, name) for path in group}:
            return None
    for star, group in alike.items():
        wanted = {(path, WHOLE) for path in group}
        label = next((label for label in (*prepared.row.places, star) if _hits(prepared, label) == wanted), None)
        found |= {label: group} if label else {path: {path: pair} for path, pair in group.items()}
    return found


def _hits(prepared: Prepared, target: str) -> set[tuple[str, str]]:
    """What a target names: module paths, with the row block's name; nothing where it is refused."""
    try:
        return {_key(site) for site in locate(prepared.model, prepared.row, target)}
    except RecipeError:
        return set()


def _key(site: Site) -> tuple[str, str]:
    return site.path, (site.name or WHOLE) if site.rows is not None else WHOLE
