"""loralib's checkpoints, as the authors' code saves them: `….lora_A`, `….lora_B`, heads and biases by their names.

The file does not say alpha, and of a fused projection not which of its matrices were adapted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lorakit.compose import WHOLE, Pair, Parts, rows_of
from lorakit.errors import CheckpointError, RecipeError
from lorakit.imports.base import Foreign, paired, read_weights, tensors_of
from lorakit.model import Prepared
from lorakit.targets import out_features

WRAPPED_IN = "model_state_dict"
"""Under this key the files of the authors' GPT-2 code hold their tensors."""
_PARALLEL = "module."
"""What DistributedDataParallel puts before every name."""


def read_loralib(file: Path, alpha: float | None) -> Foreign:
    """Read a checkpoint of loralib's `lora_state_dict`.

    Args:
        file: As `torch.save` wrote it, or the same tensors in safetensors.
        alpha: loralib's `lora_alpha`, of all layers.

    Raises:
        CheckpointError: The file cannot be read or holds no pairs; lists all that is wrong.
        RecipeError: alpha is missing, or is none.
    """
    found = read_weights(file)
    inner = found.get(WRAPPED_IN)
    tensors = tensors_of(file, inner if isinstance(inner, Mapping) else found)
    prefix = _PARALLEL if all(name.startswith(_PARALLEL) for name in tensors) else ""
    factors: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = key.removeprefix(prefix)
        path, _, last = name.rpartition(".")
        if last in ("lora_A", "lora_B"):
            factors.setdefault(path, {})[last[-1]] = value
        else:
            whole[name] = value
    paired(file, factors)
    if alpha is None:
        raise RecipeError(
            f"--alpha: {file} does not say it; give the lora_alpha of the training, such as --alpha 16 for the "
            "authors' RoBERTa-base files, --alpha 32 for GPT-2"
        )
    if not (math.isfinite(alpha) and alpha > 0):
        raise RecipeError(f"--alpha {alpha:g}: must be a number above 0")
    pairs = {path: {WHOLE: Pair(pair["B"], pair["A"], alpha)} for path, pair in factors.items()}
    return Foreign("loralib", file, len(tensors), Parts(pairs, whole=whole), bias_known=False)


@dataclass(frozen=True)
class Wanted:
    """Who says which matrices of a fused projection were adapted, which the file does not.

    Args:
        asked: `--targets`.
        recipe: The targets of a recipe.
    """

    asked: Sequence[str] | None = None
    recipe: Sequence[str] | None = None


def split_merged(file: Path, parts: Parts, bare: Prepared, wanted: Wanted) -> tuple[Parts, list[str]]:
    """The adapter with a pair for each matrix where a `MergedLinear` stacked them: A (n·r, in), B (n/parts·out, r).

    Args:
        file: For messages.
        parts: Every module whole.
        bare: The base.
        wanted: The matrices that were adapted.

    Returns:
        The adapter, and the paper's names that were taken for those of the file.

    Raises:
        CheckpointError: The shapes are those of no `MergedLinear`, or the matrices cannot be known; lists all such.
        RecipeError: `--targets` names others than a fused projection's, or there is none.
    """
    problems: list[str] = []
    pairs = dict(parts.pairs)
    taken: list[str] = []
    modules = dict(bare.model.named_modules())
    for path, blocks in parts.pairs.items():
        pair = blocks[WHOLE]
        size = out_features(modules[path]) if path in modules else None
        names = [name for name, place in bare.row.places.items() if place.rows and path.endswith(f".{place.path}")]
        plain = pair.a.shape[0] == pair.b.shape[1]
        if size is None or (plain and (pair.b.shape[0] == size or not names)):
            continue  # of a whole matrix; whether it fits is seen later
        chosen = _chosen(names, pair, size, wanted)
        if isinstance(chosen, str):
            problems.append(f"{file}: {path}: {chosen}")
            continue
        sizes = [len(range(size)[rows]) for name in chosen if isinstance(rows := rows_of(bare, path, name), slice)]
        if len(sizes) != len(chosen) or sum(sizes) != pair.b.shape[0]:
            problems.append(
                f"{file}: {path}: this model does not hold {', '.join(names)} in equal parts, as loralib does"
            )
            continue
        rank = pair.b.shape[1]
        a, b = torch.split(pair.a, rank), torch.split(pair.b, sizes)
        pairs[path] = {name: Pair(b[i].clone(), a[i].clone(), pair.alpha) for i, name in enumerate(chosen)}
        taken = chosen
    if problems:
        raise CheckpointError(*problems)
    if wanted.asked is not None and not taken:
        raise RecipeError(f"--targets: {file} holds no stacked pair of a fused projection; leave this out")
    return replace(parts, pairs=pairs), taken


def _chosen(names: list[str], pair: Pair, size: int, wanted: Wanted) -> list[str] | str:
    """Which of a fused projection's matrices a stacked pair is of, or what is wrong."""
    rank = pair.b.shape[1]
    count, rest = divmod(pair.a.shape[0], rank)
    shapes = f"A is {tuple(pair.a.shape)} and B {tuple(pair.b.shape)}"
    if not names or rest or not count or pair.b.shape[0] * len(names) != size * count:
        return f"{shapes}, which do not fit this base's module of {size} outputs"
    if count == len(names) and wanted.asked is None:
        return names
    said = (wanted.recipe or ()) if wanted.asked is None else wanted.asked
    given = [name for name in names if name in said]
    if len(given) == count and (wanted.asked is None or len(said) == count):
        return given
    if wanted.asked is not None:
        return f"{shapes}: {count} of {', '.join(names)} was adapted, and --targets names {', '.join(said)}"
    if count == 2 and {"q", "v"} <= set(names):  # what all of the authors' scripts adapt
        return ["q", "v"]
    return (
        f"{shapes}: {count} of {', '.join(names)} was adapted, and the file does not say which, nor do the shapes; say "
        f"--targets {','.join(names[:count])}, or whichever it was (a --recipe says it by its method.targets)"
    )
