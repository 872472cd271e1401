"""What an export format is: it writes an adapter as another tool reads it, and reads that back for the proof."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lorakit.errors import MergeError
from lorakit.export.card import CARD, Facts, card
from lorakit.export.truncate import Truncation, truncate
from lorakit.layers.adapted import Adapted, Edit, Stored
from lorakit.merge import check_place
from lorakit.merge_plan import adapted_layers, stored_weight
from lorakit.runtime import atomic_directory, size_text
from lorakit.section import Section
from lorakit.surgery import WRAPPED

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened

BLOCK = 2**22
"""Elements of ΔW that are compared at a time."""


@dataclass(frozen=True)
class Read:
    """What exported files hold, in this package's terms.

    Args:
        edits: Module path → what the format does to the module's weight, as that is stored.
        tensors: Canonical name → what replaces the base's tensor, or a new head's.
    """

    edits: Mapping[str, Edit]
    tensors: Mapping[str, Tensor]


class Exporter(Section):
    """An export format, with its options."""

    name: str
    library: ClassVar[str | None] = None
    """The hub's name of the library that loads the files; None where it has none."""

    @abstractmethod
    def loading(self, opened: "Opened") -> str:
        """How the files are loaded, in Markdown, for the model card.

        Args:
            opened: The run.
        """

    @abstractmethod
    def write(self, opened: "Opened", out: Path) -> None:
        """Write the adapter's files.

        Args:
            opened: The run; its frozen part may be a skeleton.
            out: An empty directory.

        Raises:
            MergeError: Names what the format cannot express, and the way that can.
        """

    @abstractmethod
    def read(self, opened: "Opened", out: Path) -> Read:
        """Read the files again, as the other tool would understand them.

        Args:
            opened: The run, for the kinds of its modules alone.
            out: Where `write` wrote.

        Raises:
            MergeError: Something in the files has no meaning.
        """

    @property
    def tolerance(self) -> float:
        """Share of the largest element of ΔW by which the format may round it: float32 by default."""
        return 1e-6


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Args:
        format: Its name.
        files: Name → bytes.
        modules: Adapted modules, each read back and compared.
        tensors: Whole tensors beside them, such as a head's.
        max_difference: max |ΔW as read back - ΔW| over the largest |ΔW|, for the worst module.
        truncation: What was cut before that, by `--rank`.
    """

    format: str
    files: dict[str, int]
    modules: int
    tensors: int
    max_difference: float
    truncation: Truncation | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Label and value, for a table."""
        rows = [("format", self.format)]
        rows += [(name, size_text(size)) for name, size in self.files.items()]
        rows += [("adapted modules", f"{self.modules:,}"), ("whole tensors", f"{self.tensors:,}")]
        if self.truncation:
            rows += self.truncation.rows()
        rows.append(("largest relative difference, read back", f"{self.max_difference:.1e}"))
        return rows


def write_export(
    opened: "Opened",
    exporter: Exporter,
    out: Path,
    rank: int | None = None,
    license: str | None = None,
) -> ExportReport:
    """Write an adapter in another tool's format, and prove it by reading it back.

    Args:
        opened: The run; its frozen part may be a skeleton.
        exporter: The format.
        out: The directory to make; it may exist if it is empty.
        rank: Cut every module's ΔW to this rank first; the proof is against what is left, and the opened model changes.
        license: For the model card: the hub's name of a licence.

    Raises:
        MergeError: The format cannot express the adapter, or does not hold it after all. Then nothing is left of it.
        LorakitError: The disk refuses.
    """
    quantised, truncation = opened.prepared.quantised, None
    notes = [f"It was trained on the base in 4 bits: {quantised.sentence()}."] if quantised else []
    if rank is not None:
        opened, truncation = truncate(opened, rank)
        notes.append(truncation.note())
    check_place(out, sum(value.numel() * value.element_size() for value in opened.state.values()))
    with atomic_directory(out) as beside:
        exporter.write(opened, beside)
        read = exporter.read(opened, beside)
        difference = verify(opened, read, exporter.tolerance)
        proved = f"{len(read.edits)} modules and {len(read.tensors)} whole tensors"
        facts = Facts(exporter.name, exporter.library, exporter.loading(opened), proved, difference)
        (beside / CARD).write_text(card(opened, facts, license, notes))
        files = {path.name: path.stat().st_size for path in sorted(beside.iterdir())}
    return ExportReport(exporter.name, files, len(read.edits), len(read.tensors), difference, truncation)


def verify(opened: "Opened", read: Read, tolerance: float) -> float:
    """Compare what was read back with the adapter.

    Args:
        opened: The run.
        read: What its exported files hold.
        tolerance: Allowed, relative to a module's largest |ΔW|.

    Returns:
        The largest relative difference of any module.

    Raises:
        MergeError: Names every module and tensor that is missing, is too many, or differs.
    """
    layers = adapted_layers(opened.prepared.model)
    whole = whole_tensors(opened)
    problems = [f"{path}: is not in the export" for path in sorted(layers.keys() - read.edits.keys())]
    problems += [f"{path}: is no adapted module" for path in sorted(read.edits.keys() - layers.keys())]
    problems += [f"{name}: is not in the export" for name in sorted(whole.keys() - read.tensors.keys())]
    problems += [f"{name}: was not trained" for name in sorted(read.tensors.keys() - whole.keys())]
    shared = whole.keys() & read.tensors.keys()
    problems += [f"{name}: differs" for name in sorted(shared) if not torch.equal(whole[name], read.tensors[name])]
    worst = 0.0
    for path in sorted(layers.keys() & read.edits.keys()):
        stored = stored_weight(opened.prepared, path, BLOCK) if not layers[path].additive else None
        difference = relative_difference(layers[path], read.edits[path], stored)
        worst = max(worst, difference)
        if not difference <= tolerance:
            problems.append(f"{path}: its update differs by {difference:.1e} of its largest element")
    if problems:
        raise MergeError(*(f"the export does not hold the adapter: {problem}" for problem in problems))
    return worst


def relative_difference(layer: Adapted, edit: Edit, stored: Stored | None = None) -> float:
    """Max |ΔW by `edit` - ΔW of the layer| / max |ΔW of the layer|, over blocks of rows of the stored weight.

    Args:
        layer: The adapted layer.
        edit: What was read back.
        stored: The base's weight, where ΔW depends on it; None: where it does not, and zeros will do.
    """
    blocks = stored or partial(_zeros, layer.weight.shape)
    own = layer.edit(blocks)
    difference = largest = 0.0
    for start, block in blocks():
        exact = block if stored is None else block.double()  # a small ΔW is not to be lost in W's rounding
        delta = own.rows(exact, start) - exact
        difference = max(difference, float((edit.rows(exact, start) - exact - delta).abs().max()))
        largest = max(largest, float(delta.abs().max()))
    return difference / largest if largest else difference


def _zeros(shape: torch.Size) -> Iterator[tuple[int, Tensor]]:
    count, width = shape
    step = max(1, BLOCK // width)
    for start in range(0, count, step):
        yield start, torch.zeros(min(step, count - start), width)


def whole_tensors(opened: "Opened") -> dict[str, Tensor]:
    """What was trained beside the adapted modules' updates: heads, biases, modules trained whole, by canonical name."""
    updates = {
        f"{path}.{name}"
        for path, layer in adapted_layers(opened.prepared.model).items()
        for name, _ in (*layer.named_parameters(), *layer.named_buffers())
        if not name.startswith(f"{WRAPPED}.")
    }
    return {name: value for name, value in opened.state.items() if name not in updates}
