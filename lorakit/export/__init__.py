"""The export formats: one file each, one line here."""

from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.errors import RecipeError
from lorakit.export.base import Exporter, ExportReport, write_export
from lorakit.export.gguf import Gguf
from lorakit.export.loralib import LoraLib
from lorakit.export.peft import Peft
from lorakit.export.portable import Portable

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened

EXPORTERS: dict[str, type[Exporter]] = {"peft": Peft, "portable": Portable, "gguf": Gguf, "loralib": LoraLib}


def export(
    opened: "Opened",
    to: str,
    out: Path,
    rank: int | None = None,
    license: str | None = None,
) -> ExportReport:
    """Write an adapter in another tool's format, and prove it by reading it back.

    Args:
        opened: A run; its frozen part may be a skeleton.
        to: The format's name.
        out: The directory to make; it may exist if it is empty.
        rank: Cut every module's ΔW to this rank first; the opened model changes.
        license: For the model card: the hub's name of a licence.

    Raises:
        RecipeError: There is no such format.
        MergeError: The format cannot express the adapter, or does not hold it after all. Then nothing is left of it.
        LorakitError: The disk refuses.
    """
    if to not in EXPORTERS:
        raise RecipeError(f"--to {to}: no such format; there are: {', '.join(EXPORTERS)}")
    return write_export(opened, EXPORTERS[to](name=to), out, rank, license)
