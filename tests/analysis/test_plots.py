"""The heatmaps hold what was found, in panels that fit."""

import xml.etree.ElementTree as ET

import pytest
import torch
from planted import frame

from lorakit.analysis.found import MatrixFound, Overlap, PairFound, RunFound
from lorakit.analysis.plots import energy, phi
from lorakit.analysis.sites import Site
from lorakit.analysis.spectrum import spectrum
from lorakit.analysis.subspace import overlap
from lorakit.analysis.tables import overlaps, spectra, suggestion
from lorakit.report.blocks import Picture


def matrix(name: str, layer: int | None, values: list[float]) -> MatrixFound:
    site = Site(f"blocks.{layer}.{name}", "", name, layer)
    return MatrixFound(site, (9, 9), len(values), spectrum(torch.tensor(values, dtype=torch.float64)), None)


def run(matrices: list[MatrixFound], label: str = "a") -> RunFound:
    return RunFound(label, label, 0, matrices)


def pair(names: list[str], ranks: tuple[int, int]) -> PairFound:
    grid = overlap(frame(40, ranks[0], 1), frame(40, ranks[1], 2))
    return PairFound("one", "other", {Site(n, "", n, 0): {f: Overlap(grid, 40) for f in "AB"} for n in names})


def texts(picture: Picture) -> list[str]:
    assert picture.png.startswith(b"\x89PNG")
    return ["".join(node.itertext()) for node in ET.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("names", [["q"], ["q", "k", "v", "o", "gate", "up", "down"]])
def test_energy_has_a_panel_for_each_kind_of_matrix(names: list[str]) -> None:
    found = [matrix(name, layer, [3.0, 2.0, 1.0]) for layer in range(40) for name in names]
    said = texts(energy(run([*found, matrix("q", None, [1.0])]), "energy_1"))
    assert [text for text in said if text in names] == names
    assert said.count("rank k") == len(names)
    assert {"0", "39"} & set(said)


def test_a_matrix_of_zeros_has_no_dot() -> None:
    picture = energy(run([matrix("q", 0, [0.0, 0.0])]), "energy_1")
    assert "share kept" in texts(picture)


@pytest.mark.parametrize("ranks", [(1, 1), (2, 12), (12, 2)])
def test_phi_has_a_panel_for_each_factor(ranks: tuple[int, int]) -> None:
    found = pair(["q", "v"], ranks)
    picture = phi(found, list(found.overlaps), "phi_1")
    assert picture is not None
    assert {"layer 0 q: A", "layer 0 q: B", "layer 0 v: A", "j, other", "i, one"} <= set(texts(picture))
    assert "φ of one and other" in picture.alt
    assert phi(found, [], "phi_1") is None


def test_the_tables() -> None:
    found = run([matrix("q", 3, [3.0, 0.1]), matrix("v", 3, [1.0, 1.0]), matrix("lm_head", None, [0.0, 0.0])])
    assert found.matrices[1].kept() == [0.5, 1.0]
    assert [row[:6] for row in spectra(found)[1]] == [
        ["layer 3 q", "2", "3.00", "3.00", "1.2", "1"],
        ["layer 3 v", "2", "1.41", "1.00", "2.0", "2"],
        ["blocks.None.lm_head", "2", "0.00", "0.00", "0.0", "0"],
    ]
    # Energies 9, 1, 0 and then 0.01, 1, 0: the first directions hold 10 of 11.01.
    assert (found.enough(), found.enough_for_each()) == (2, 2)
    expected = "a: trained with rank 2; rank 2 keeps 99% of the energy of all ΔW together, rank 2 99% of each"
    assert suggestion(found) == expected
    header, rows = overlaps(pair(["q"], (2, 5)))
    assert len(header) == len(rows[0]) == 8
    assert rows[0][:2] == ["layer 0 q", "2 and 5"]
    assert (rows[0][4], rows[0][7]) == ("0.125", "0.125")
