"""The shipped recipes, as cases of tests."""

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest

from lorakit.recipe import Recipe, load

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def in_turn(kind: Callable[[Recipe], Hashable]) -> list[Any]:
    """Every recipe; those of a kind that came before are `long`."""
    cases, seen = [], set[Hashable]()
    for file in RECIPES:
        found = kind(load(file))
        cases.append(pytest.param(file, id=file.stem, marks=[pytest.mark.long] if found in seen else []))
        seen.add(found)
    return cases
