"""An analysis in words: the tables on the terminal, and the same as Markdown."""

from collections.abc import Sequence

from lorakit.analysis.found import Analysis, MatrixFound, PairFound, RunFound
from lorakit.analysis.spectrum import ENERGY
from lorakit.report import table
from lorakit.report.blocks import Picture
from lorakit.report.markdown import escape

Table = tuple[list[str], list[list[str]]]
"""(header, rows)."""


def spectra(run: RunFound) -> Table:
    """A run's matrices: the spectrum of ΔW, and what it amplifies."""
    header = ["matrix", "rank", "‖ΔW‖", "σ₁", "effective rank", f"rank for {ENERGY:.0%}"]
    header += ["‖W‖", "‖W‖ along ΔW", "along W", "along random", "factor"]
    return header, [_spectrum(one) for one in run.matrices]


def overlaps(pair: PairFound) -> Table:
    """φ of two runs, matrix by matrix, beside that of random subspaces."""
    header = ["matrix", "ranks"]
    for factor in ("A", "B"):
        header += [f"{factor}: φ(1,1)", f"{factor}: φ(all)", "by chance"]
    rows = []
    for site, both in pair.overlaps.items():
        row = [site.label, " and ".join(map(str, both["A"].grid.shape))]
        for overlap in both.values():
            row += [_share(overlap.first), _share(overlap.whole), _share(overlap.chance)]
        rows.append(row)
    return header, rows


def suggestion(run: RunFound) -> str:
    """The rank that would have done."""
    given = sorted({one.rank for one in run.matrices})
    ranks = f"{given[0]}" if len(given) == 1 else f"{given[0]} to {given[-1]}"
    return (
        f"{run.label}: trained with rank {ranks}; rank {run.enough()} keeps {ENERGY:.0%} of the energy of all ΔW "
        f"together, rank {run.enough_for_each()} {ENERGY:.0%} of each"
    )


def warnings(found: Analysis) -> list[str]:
    """What would make somebody read too much into φ."""
    if not found.pairs:
        return []
    by_seed: dict[int, list[str]] = {}
    for run in found.runs:
        by_seed.setdefault(run.seed, []).append(run.label)
    return [
        f"{', '.join(labels)} have the same train.seed, {seed}: their A's began with the same numbers, and φ of A then "
        "says little; look at B, or train with other seeds"
        for seed, labels in by_seed.items()
        if len(labels) > 1
    ]


def markdown(found: Analysis, pictures: dict[str, Picture]) -> str:
    """analysis.md.

    Args:
        found: What to say.
        pictures: File's name without its ending → the picture.
    """
    names = ", ".join(run.label for run in found.runs)
    parts = [f"# Analysis of {escape(names)}\n", f"The base is {escape(found.base)}.\n"]
    for number, run in enumerate(found.runs, 1):
        parts += [f"## {escape(run.label)}\n", table(*spectra(run), "---:"), f"{escape(suggestion(run))}.\n"]
        parts += _pictured(pictures, f"energy_{number}")
    parts += [
        "‖W‖ along ΔW: ‖UᵀWV‖ with U, V the first singular vectors of ΔW, as many as its rank; along W: with those of "
        "W itself, the most there can be; along random: with those of a random matrix. factor: ‖ΔW‖ / ‖UᵀWV‖.\n"
    ]
    for number, pair in enumerate(found.pairs, 1):
        parts += [f"## {escape(pair.one)} and {escape(pair.other)}\n", table(*overlaps(pair), "---:")]
        parts += _pictured(pictures, f"phi_{number}")
    if found.pairs:
        parts += [
            "φ(i,j): how much of the first i directions of the one run lies in the first j of the other (1: all of the "
            "smaller space; by chance: the expectation for random ones). A: what the update reads; B: what it writes.\n"
        ]
    parts += [f"Note: {escape(note)}.\n" for note in warnings(found)]
    return "\n".join(parts)


def _spectrum(one: MatrixFound) -> list[str]:
    values, amplified = one.spectrum.values, one.amplification
    row = [one.site.label, str(one.rank), _number(one.spectrum.norm), _number(values[0])]
    row += [f"{one.spectrum.effective_rank:.1f}", str(one.spectrum.energy_rank)]
    if amplified is None:
        return [*row, *["–"] * 5]
    shown: Sequence[float | None] = (
        amplified.base_norm,
        amplified.onto_update,
        amplified.onto_base,
        amplified.onto_random,
        amplified.factor,
    )
    return [*row, *map(_number, shown)]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:#.3g}".rstrip(".")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _pictured(pictures: dict[str, Picture], name: str) -> list[str]:
    return [f"![{escape(pictures[name].alt)}]({name}.png)\n"] if name in pictures else []
