"""`lorakit analyze`: what adapters have learned, as in the paper's §7, from their files and the base's.

The base is read matrix by matrix, and never more than one module of it is in memory.
"""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from torch import Tensor

from lorakit.analysis.amplification import amplification, base_values
from lorakit.analysis.found import Analysis, MatrixFound, Overlap, PairFound, RunFound
from lorakit.analysis.plots import energy, phi
from lorakit.analysis.sites import Matrix, Site, frozen_weight, matrices, merged_difference
from lorakit.analysis.spectrum import of_matrix, of_pair, spectrum
from lorakit.analysis.subspace import directions, overlap
from lorakit.analysis.tables import markdown
from lorakit.checkpoint import Opened, open_run
from lorakit.combine import other_weights
from lorakit.errors import CheckpointError, RecipeError
from lorakit.progress import Progress
from lorakit.runtime import derive, disk_errors, json_ready, write_atomic

JSON, MARKDOWN = "analysis.json", "analysis.md"


def analyze(runs: Sequence[Path], progress: Progress, layer: int | None = None) -> Analysis:
    """Look at one run's updates, or at several runs' and how they compare.

    Args:
        runs: Run directories of one base.
        progress: Where the bar goes.
        layer: Whose φ is drawn; None: the middle one, as in the paper (48 of 96).

    Raises:
        CheckpointError: A run has no low-rank update or an update of zeros, or the runs have other bases or share no
            matrix; names all.
        RecipeError: There is no such layer.
        LorakitError: A run or its base is missing or damaged.
    """
    assert runs, "name a run"
    opened = [open_run(run, skeleton=True) for run in runs]
    if problems := [problem for other in opened[1:] if (problem := other_weights(opened[0], other))]:
        raise CheckpointError(*problems)
    found = [matrices(run) for run in opened]
    if problems := [problem for run, there in zip(opened, found, strict=True) for problem in _problems(run, there)]:
        raise CheckpointError(*problems)
    labels = _labels(runs)
    pairs = list(combinations(range(len(runs)), 2))
    shared = {pair: [site for site in found[pair[0]] if site in found[pair[1]]] for pair in pairs}
    if apart := [pair for pair in pairs if not shared[pair]]:
        raise CheckpointError(*(_nothing_shared(runs[i], runs[j], found[i], found[j]) for i, j in apart))
    drawn = _choose([site for sites in shared.values() for site in sites] or list(found[0]), layer)
    looked = _look(opened, found, progress)
    return Analysis(
        opened[0].prepared.located.name,
        [
            RunFound(label, str(run), one.recipe.train.seed, there)
            for label, run, one, there in zip(labels, runs, opened, looked, strict=True)
        ],
        [PairFound(labels[i], labels[j], _overlaps(shared[i, j], found[i], found[j])) for i, j in pairs],
        drawn,
    )


def write(found: Analysis, out: Path) -> None:
    """Write analysis.json, analysis.md and the pictures that belong to it, in the place of earlier ones.

    Args:
        found: What to write.
        out: The directory; made where it is not there.

    Raises:
        LorakitError: The disk refuses.
    """
    pictures = {f"energy_{number}": energy(run, f"energy_{number}") for number, run in enumerate(found.runs, 1)}
    for number, pair in enumerate(found.pairs, 1):
        sites = [site for site in pair.overlaps if site.layer == found.layer]
        if picture := phi(pair, sites, f"phi_{number}"):
            pictures[f"phi_{number}"] = picture
    # First of all, since it is what the directory is known by.
    write_atomic(out / JSON, json.dumps(json_ready(found.as_dict()), ensure_ascii=False) + "\n")
    with disk_errors(out):
        for old in [*out.glob("energy_*.png"), *out.glob("phi_*.png")]:
            old.unlink()
    for name, picture in pictures.items():
        write_atomic(out / f"{name}.png", picture.png)
    write_atomic(out / MARKDOWN, markdown(found, pictures))


def check_place(out: Path) -> None:
    """Refuse a directory that holds something else than an analysis.

    Args:
        out: Where one is to be written.

    Raises:
        RecipeError: With what to do.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / JSON).is_file())):
        raise RecipeError(f"{out} exists and is no analysis; choose another --out")


def _look(opened: Sequence[Opened], found: Sequence[dict[Site, Matrix]], progress: Progress) -> list[list[MatrixFound]]:
    """Spectrum and amplification of every matrix of every run; the base is read once for all of them."""
    looked: list[dict[Site, MatrixFound]] = [{} for _ in opened]
    every = list(dict.fromkeys(site for there in found for site in there))
    with progress.bar("matrices", len(every), "matrices") as bar:
        for site in every:
            bases: dict[bool, tuple[Tensor, Tensor]] = {}  # one in 4 bits is another one
            for number, (run, there) in enumerate(zip(opened, found, strict=True)):
                if site in there:
                    quantised = run.prepared.quantised is not None
                    if quantised not in bases:
                        weight = there[site].rows(frozen_weight(run, site.path, there[site].layer))
                        bases[quantised] = weight, base_values(weight)
                    looked[number][site] = _matrix(run, there[site], *bases[quantised])
            bar.advance()
    return [[looks[site] for site in there] for looks, there in zip(looked, found, strict=True)]


def _matrix(run: Opened, matrix: Matrix, weight: Tensor, values: Tensor) -> MatrixFound:
    site, rank = matrix.site, len(matrix.pair.A)
    if matrix.dense:
        update = of_matrix(matrix.rows(merged_difference(run, site.path, matrix.layer)))
    else:
        update = of_pair(matrix.pair)
    seed = derive(0, "analysis", site.path, site.block)
    amplified = amplification(update, weight, values, rank, seed)
    out, in_ = weight.shape
    return MatrixFound(site, (out, in_), rank, spectrum(update.values), amplified)


def _overlaps(
    sites: Sequence[Site], one: dict[Site, Matrix], other: dict[Site, Matrix]
) -> dict[Site, dict[str, Overlap]]:
    found = {}
    for site in sites:
        first, second = directions(one[site].pair), directions(other[site].pair)
        found[site] = {factor: Overlap(overlap(first[factor], second[factor]), len(first[factor])) for factor in first}
    return found


def _problems(run: Opened, there: dict[Site, Matrix]) -> list[str]:
    """Why a run cannot be analysed."""
    if not there:
        names = "+".join(method.name for method in run.prepared.methods)
        return [f"{run.directory}: was trained by {names}, which has no low-rank update; analyze takes runs of lora"]
    if not any(matrix.pair.A.any() and matrix.pair.B.any() for matrix in there.values()):
        return [f"{run.directory}: its update is zero: was it trained? See the run's report"]
    return []


def _nothing_shared(one: Path, other: Path, first: dict[Site, Matrix], second: dict[Site, Matrix]) -> str:
    names = [", ".join(dict.fromkeys(site.name for site in there)) for there in (first, second)]
    return f"{other}: adapts {names[1]}, and {one} {names[0]}: they share no matrix"


def _choose(sites: Sequence[Site], layer: int | None) -> int | None:
    """The layer that is drawn."""
    there = sorted({site.layer for site in sites if site.layer is not None})
    if layer is not None and layer not in there:
        raise RecipeError(f"--layer {layer}: the adapted layers are {', '.join(map(str, there)) or 'none'}")
    return layer if layer is not None else there[len(there) // 2] if there else None


def _labels(runs: Sequence[Path]) -> list[str]:
    """Each run's short name, where that tells them apart."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]
