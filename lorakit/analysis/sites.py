"""The matrices that a run adapted: a module each, or a row block of a fused projection."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.arch import Architecture
from lorakit.checkpoint import Opened
from lorakit.layers.dora import DoRALayer
from lorakit.layers.low_rank import LoRALayer, LowRank, RowBlocks, transposed
from lorakit.merge_plan import adapted_layers, stored_weight

BLOCK = 2**20
"""Elements of the base's rows that are read at a time."""


@dataclass(frozen=True)
class Site:
    """Where an adapted matrix is; equal in two runs if it is the same matrix.

    Args:
        path: Of the module.
        block: The paper's name of its rows, where they are a part of a fused projection; else empty.
        name: The paper's (q, v, …), else the module's.
        layer: Number of the transformer's block as in the path; None outside of all.
    """

    path: str
    block: str
    name: str
    layer: int | None

    @property
    def label(self) -> str:
        """Short, for tables: "layer 3 q"."""
        return self.path if self.layer is None else f"layer {self.layer} {self.name}"


@dataclass(frozen=True)
class Matrix:
    """An adapted matrix of a run.

    Args:
        site: Where it is.
        pair: What was trained for it.
        layer: The module, whose frozen weight may be on the meta device.
    """

    site: Site
    pair: LowRank
    layer: LoRALayer

    @property
    def dense(self) -> bool:
        """Whether ΔW is more than the pair's product, and has a full rank: DoRA scales every output."""
        return isinstance(self.layer, DoRALayer)

    def rows(self, whole: Tensor) -> Tensor:
        """The matrix's rows of its whole module's (out, in)."""
        update = self.layer.update
        return whole[update.rows(self.site.block)] if isinstance(update, RowBlocks) else whole


def matrices(opened: Opened) -> dict[Site, Matrix]:
    """Every matrix with a low-rank update, in the model's order; none for methods that have none."""
    found = {}
    for path, layer in adapted_layers(opened.prepared.model).items():
        assert isinstance(layer, LoRALayer)
        update = layer.update
        blocks = {"": update} if isinstance(update, LowRank) else update.pairs()
        for block, pair in blocks.items():
            site = Site(path, block, block or _name(opened.prepared.row, path), _number(path))
            found[site] = Matrix(site, pair, layer)
    return found


def frozen_weight(opened: Opened, path: str, layer: LoRALayer) -> Tensor:
    """A module's frozen weight from the base's files.

    Args:
        opened: The run; its model may be a skeleton.
        path: Of the module.
        layer: The module.

    Returns:
        (out, in) float32: the matrix that the module multiplies with.
    """
    weight = torch.empty(layer.frozen.get_parameter("weight").shape, dtype=torch.float32, device="cpu")
    for start, rows in stored_weight(opened.prepared, path, BLOCK)():
        weight[start : start + len(rows)] = rows
    return weight.T if transposed(layer.frozen) else weight


def merged_difference(opened: Opened, path: str, layer: LoRALayer) -> Tensor:
    """What a merge adds to a module's weight, for an update that is not the product of its pair alone.

    Args:
        opened: The run; its model may be a skeleton.
        path: Of the module.
        layer: The module.

    Returns:
        W' - W, (out, in) float32.
    """
    stored = stored_weight(opened.prepared, path, BLOCK)
    edit = layer.edit(stored)
    delta = torch.cat([edit.rows(rows, start) - rows for start, rows in stored()]).detach()
    return delta.T if transposed(layer.frozen) else delta


def _name(row: Architecture, path: str) -> str:
    """The paper's name of a module; its own where the paper has none, or where it is several matrices in one."""
    fitting = [
        (len(place.path), name)
        for name, place in row.places.items()
        if place.rows is None and path.endswith(f".{place.path}")
    ]
    return max(fitting)[1] if fitting else path.rpartition(".")[2]


def _number(path: str) -> int | None:
    found = re.search(r"\.(\d+)\.", path)
    return int(found[1]) if found else None
