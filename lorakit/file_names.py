"""Which of a model's parameters are in the base's files, and under which names."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lorakit.bases import Located
from lorakit.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

_LEGACY = {"gamma": "weight", "beta": "bias"}


def file_names_of(model: "nn.Module", in_files: Iterable[str]) -> dict[str, str]:
    """Parameter name → its name in the files, which may lack the body's prefix or use LayerNorm's old names.

    A tied parameter stands there under each of its names that the files have.
    """
    prefix = getattr(model, "base_model_prefix", "")
    by_modern_name: dict[str, str] = {}
    for name in in_files:
        stem, _, last = name.rpartition(".")
        by_modern_name[f"{stem}.{_LEGACY.get(last, last)}" if stem else name] = name
    found = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        for candidate in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
            if candidate in by_modern_name:
                found[name] = by_modern_name[candidate]
                break
    return found


def absent(model: "nn.Module", file_names: Mapping[str, str]) -> set[str]:
    """Parameters of which the files have no tensor under any name known here."""
    every = model.named_parameters(remove_duplicate=False)
    there = {id(parameter) for name, parameter in every if name in file_names}
    return {name for name, parameter in model.named_parameters() if id(parameter) not in there}


def in_body(model: "nn.Module", name: str) -> bool:
    """Whether a parameter belongs to the pre-trained body; published bodies may lack the pooler."""
    prefix = getattr(model, "base_model_prefix", "")
    return name.startswith(f"{prefix}.") and "pooler" not in name.split(".")


def check_new(model: "nn.Module", located: Located, generation: bool, new: Iterable[str]) -> None:
    """What the files lack may be a classification head, never a part of the body or of a language model.

    Raises:
        ModelError: Names the parameters.
    """
    holes = sorted(name for name in new if generation or in_body(model, name))
    if holes:
        raise ModelError(f"model.base: {located.name}: its files lack {', '.join(holes[:3])} ({len(holes)} in all)")
