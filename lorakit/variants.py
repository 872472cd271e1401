"""The names under which methods are compared: the methods themselves, and options of theirs that have names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorakit.methods import METHODS
from lorakit.recipe_errors import refusal_of


@dataclass(frozen=True)
class Variant:
    """What stands behind a name.

    Args:
        method: Keys of the recipe's `method` section, `name` among them.
        train: Keys of its `train` section, by dotted path below it.
    """

    method: Mapping[str, Any]
    train: Mapping[str, Any] = field(default_factory=dict)


_OPTIONS = {
    "houlsby": Variant({"name": "adapter", "variant": "houlsby"}),
    "lin": Variant({"name": "adapter", "variant": "lin"}),
    "pfeiffer": Variant({"name": "adapter", "variant": "pfeiffer"}),
    "dora": Variant({"name": "lora", "dora": True}),
    "pissa": Variant({"name": "lora", "init": "pissa"}),
    "rslora": Variant({"name": "lora", "rslora": True}),
    "lora+": Variant({"name": "lora"}, {"optimizer.lr_b_ratio": 16}),
}


def variants() -> dict[str, Variant]:
    """Every name: those of the methods, the adapters' kinds (`houlsby`, …) and LoRA's options (`dora`, …)."""
    named = {name: Variant({"name": name}) for name in METHODS}
    return named | {name: option for name, option in _OPTIONS.items() if option.method["name"] in METHODS}


def parts(name: str) -> list[str]:
    """The single names of which a name consists: `lora+preembed` of two, `lora+` is LoRA+."""
    return [name] if name in variants() else name.split("+")


def unknown(name: str, others: Mapping[str, Any] | None = None) -> str | None:
    """What is wrong with a name, with the nearest that there is; None where it is known.

    Args:
        name: A single one, or several joined by `+`.
        others: Names that are known beside the variants: those of a recipe's `methods` map.
    """
    known = [*(others or {}), *variants()]
    wrong = [part for part in parts(name) if part not in known]
    return None if name in known or not wrong else refusal_of(wrong[0], known)
